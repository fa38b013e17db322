"""Try every claim of equal numbers with each kind of CPU kernels, idle and beside four busy processes.

Usage: python -m tests.processors [OPTIONS OF PYTEST]

A claim is a test marked `same_numbers("THESE, and THOSE | BOUND")`. The table has a row for each claim and a column for
each condition: the number of its tests that pass, and after a slash those that fail. docs/parity.md lists the claims.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from tests.golden_root import REPOSITORY

BUSY = 4  # processes that compute beside the tests
MARK = "@pytest.mark.same_numbers("
CPU_INFO = Path("/proc/cpuinfo")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # products outside torch's own kernels
KERNELS: dict[str, dict[str, str]] = {
    "default": {"ATEN_CPU_CAPABILITY": "default", **AVX2},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", **AVX2},
    "own": {},
}

Results = dict[str, Counter]  # claim -> outcomes "passed", "failed", "skipped"


def settings(kernels: str) -> dict[str, str]:
    """Return the environment variables that select a kind of kernels."""
    chosen = dict(KERNELS[kernels])
    if chosen and CPU_INFO.exists() and "GenuineIntel" in CPU_INFO.read_text():
        chosen["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"
    return chosen


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen]]:
    """Keep `count` processes computing inside this context."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def files_with_claims() -> list[str]:
    return [str(path) for path in sorted((REPOSITORY / "tests").glob("test_*.py")) if MARK in path.read_text()]


def try_claims(environment: Mapping[str, str], options: Sequence[str]) -> tuple[Results, list[str]]:
    """Run the tests of all claims; return outcomes by claim, and the names of tests that failed.

    Raises RuntimeError if pytest ends without a report.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "same_numbers",
            "-p",
            "no:cacheprovider",
            *files_with_claims(),
        ]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *options],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest: it ended with status {done.returncode}:\n{done.stdout[-4000:]}{done.stderr}")
        return read_report(report)


def read_report(report: Path) -> tuple[Results, list[str]]:
    """Read outcomes by claim and the names of failed tests from pytest's XML."""
    outcomes: Results = {}
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        claim = next(one.get("value") for one in case.iter("property") if one.get("name") == "claim")
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes.setdefault(claim, Counter())[outcome] += 1
        if outcome == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return outcomes, failed


def table(results: Mapping[str, Results]) -> str:
    """Format claims in rows and conditions in columns."""
    claims = sorted({claim for found in results.values() for claim in found})
    lines = [" | ".join(["claim", "bound", *results])]
    for claim in claims:
        counts = [found.get(claim, Counter()) for found in results.values()]
        lines.append(
            " | ".join([claim, *(f"{n['passed']}/{n['failed']}" if n["failed"] else f"{n['passed']}" for n in counts)])
        )
    return "\n".join(lines)


def main(options: Sequence[str]) -> int:
    """Try all claims under all conditions and print what held. Return 1 if a test failed."""
    results: dict[str, Results] = {}
    failures = []
    for kernels in KERNELS:
        for load in (0, BUSY):
            condition = f"{kernels}, {'busy' if load else 'idle'}"
            with busy_processes(load):
                results[condition], failed = try_claims(settings(kernels), options)
            failures += [f"{condition}: {name}" for name in failed]
            print(
                f"{condition}: {sum(results[condition].values(), Counter())['passed']} passed, {len(failed)} failed",
                flush=True,
            )
    print(table(results))
    print(*failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
