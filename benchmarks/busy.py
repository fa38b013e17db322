"""Measure infer.py on one layout, beside processes that keep cores busy, by how its threads wait.

    python -m benchmarks.busy              beside four busy processes
    python -m benchmarks.busy --busy 0     alone: what sleeping threads cost on idle cores

    spinning   torch's own setting: a thread on every core, spinning for 3 ms before it sleeps
    sleeping   a thread on every core, asleep while it waits
    chosen     as infer.py chooses: asleep, on the cores that are idle at its start

Seconds are those of whole processes, from start to exit: on the clock, and of all threads on processors. Each round
starts with another way. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from seg2any.system.console import exit_status, whole
from seg2any.system.cores import n_usable_cores
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances
from seg2any.system.threads import COUNT, SLEEP_WHILE_WAITING

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "shapes"
SPINS = "300000"  # GNU OpenMP's GOMP_SPINCOUNT where neither it nor OMP_WAIT_POLICY is set


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=whole(0), default=4, help="processes that never sleep (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="(default: %(default)s)")
    parser.add_argument("--num_inference_steps", type=whole(1), default=20, help="(default: %(default)s)")
    parser.add_argument(
        "--layout", type=user_path, default=EXAMPLE / "masks" / "five.json", help="(default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.busy", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure; print a table and the JSON line. Raises UserError."""
    ways = environments()
    load = os.getloadavg()[0]
    with busy_processes(options.busy), tempfile.TemporaryDirectory() as folder:
        seconds = {name: [] for name in ways}
        names = list(ways)
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                output = Path(folder) / f"{name}-{turn}"
                seconds[name].append(timed(command(options, output), ways[name]))
    rows = {}
    for name, rounds in seconds.items():
        clock, processor = (round(statistics.median(column), 1) for column in zip(*rounds, strict=True))
        rows[name] = {"seconds": clock, "processor_seconds": processor, "rounds": rounds}
        print(f"{name:<10}{clock:7.1f} s on the clock {processor:7.1f} s on processors")
    about = {"busy": options.busy, "steps": options.num_inference_steps, "load_before": round(load, 1)}
    print(json.dumps({**about, "rows": rows, **circumstances("cpu")}))


def environments() -> dict[str, dict[str, str]]:
    """Build the environment of every way. Raises UserError where torch alone decides."""
    if not (cores := n_usable_cores()):
        raise UserError("benchmarks.busy: this system does not tell its cores, so infer.py chooses nothing; use Linux")
    bare = {key: value for key, value in os.environ.items() if key not in (COUNT, *SLEEP_WHILE_WAITING)}
    bare["HF_HUB_OFFLINE"] = "1"
    everywhere = {**bare, COUNT: str(cores)}
    return {"spinning": {**everywhere, "GOMP_SPINCOUNT": SPINS}, "sleeping": everywhere, "chosen": bare}


def command(options: argparse.Namespace, output: Path) -> list[str]:
    """Build the command line of one image."""
    flags = {
        "pretrained_model_name_or_path": EXAMPLE / "model",
        "lora_ckpt_path": EXAMPLE / "lora",
        "seg_mask_path": options.layout,
        "output_path": output,
        "num_inference_steps": options.num_inference_steps,
        "device": "cpu",
    }
    return [sys.executable, str(ROOT / "infer.py"), *(f"--{name}={value}" for name, value in flags.items())]


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a process and return its seconds on the clock and on processors. Raises UserError if it fails."""
    began = time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with child.stderr:
        errors = child.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise UserError(f"infer.py: failed; {errors.strip().splitlines()[-1] if errors.strip() else status}")
    return round(time.monotonic() - began, 2), round(used.ru_utime + used.ru_stime, 2)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes computing inside this context."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    run_command(main)
