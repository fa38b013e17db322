"""Compare two evaluations of the same samples, number by number.

    python -m seg2any.evaluation.compare A.json B.json

Each difference is A minus B over the samples that both have, with a 95 % interval: samples are drawn with replacement,
the same ones for both, so what makes a sample hard for both cancels. "A is better" and "B is better" say that the
interval excludes 0, "undecided" that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.evaluation.metrics.bootstrap import Difference, paired_difference, paired_resamples
from seg2any.evaluation.report.results import Row, Run, read_run
from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command


@dataclass(frozen=True)
class Compared:
    """One row of both runs.

    difference  A minus B; None where the runs lack what pairs their samples
    """

    a: Row
    b: Row
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """Name the better run, or "undecided", or "not paired"."""
        if self.difference is None:
            return "not paired"
        if not self.difference.is_clear:
            return "undecided"
        return "A is better" if (self.difference.value > 0) == (self.a.better == "higher") else "B is better"


def compare(a: Run, b: Run) -> Iterator[Compared]:
    """Compare the rows that both runs have, in A's order.

    Raises UserError if the benchmarks differ or if no row is common.
    """
    if a.benchmark != b.benchmark:
        raise UserError(f"A is a run of {a.benchmark}, B of {b.benchmark}; compare runs of one benchmark")
    others = {row.label: row for row in b.rows}
    common = [row for row in a.rows if row.label in others]
    if not common:
        raise UserError("A and B have no number in common; evaluate both with the same metrics")
    return (Compared(row, others[row.label], _difference(a, b, row, others[row.label])) for row in common)


def _difference(a: Run, b: Run, row: Row, other: Row) -> Difference | None:
    label = row.label
    if label in a.parts and label in b.parts:
        difference = paired_difference(a.parts[label], b.parts[label])
        return difference if difference.n else None
    # Distances between sets are resampled while they are computed: paired if the samples and the draws are the same.
    drawn_from = row.extra.get("keys_sha256")
    if drawn_from is not None and drawn_from == other.extra.get("keys_sha256"):
        resamples = a.resamples.get(label, []), b.resamples.get(label, [])
        if resamples[0] and len(resamples[0]) == len(resamples[1]):
            return paired_resamples((row.value, other.value), *resamples, row.n)
    return None


def table(compared: Sequence[Compared]) -> str:
    """Print one line per number."""
    width = max(len(row.a.label) for row in compared)
    lines = [f"{'':<{width}}  {'A':>10} {'B':>10} {'A - B':>10}  {'95 % interval':^23} {'samples':>7}"]
    for row in compared:
        start = f"{row.a.label:<{width}}  {row.a.value:>10.4f} {row.b.value:>10.4f}"
        if row.difference is None:
            lines.append(f"{start} {row.a.value - row.b.value:>10.4f}  {'':^23} {'':>7}  {row.verdict}")
            continue
        difference = row.difference
        bounds = "" if math.isnan(difference.low) else f"[{difference.low:+.4f}, {difference.high:+.4f}]"
        lines.append(f"{start} {difference.value:>+10.4f}  {bounds:^23} {difference.n:>7}  {row.verdict}")
    return "\n".join(lines)


def remarks(a: Run, b: Run) -> Iterator[str]:
    """Yield warnings about a comparison, a line each.

    They tell that the data may differ, and which numbers or samples only one run has.
    """
    if a.hashes.get("data") != b.hashes.get("data"):
        yield "the data of A and B have different hashes; samples of one name may differ"
    ours, theirs = {row.label for row in a.rows}, {row.label for row in b.rows}
    for label in sorted(ours ^ theirs):
        yield f"{label}: only in {'A' if label in ours else 'B'}"
    for label in sorted(a.parts.keys() & b.parts.keys()):
        if alone := len(a.parts[label].keys() ^ b.parts[label].keys()):
            yield f"{label}: the difference leaves out {alone} samples that only one run has"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0 compared, 2 wrong input."""
    parser = Parser(
        prog="python -m seg2any.evaluation.compare",
        description=__doc__,
    )
    parser.add_argument("a", type=user_path, metavar="A.json", help="JSON file that an evaluation wrote")
    parser.add_argument("b", type=user_path, metavar="B.json", help="JSON file of another run of the same benchmark")
    options = parser.parse_args(arguments)
    return exit_status("seg2any.evaluation.compare", lambda: show(options.a, options.b), "start again")


def show(first: Path, second: Path) -> None:
    """Print the comparison of two files. Raises UserError."""
    a, b = read_run(first), read_run(second)
    compared = list(compare(a, b))
    print(f"A: {first}\nB: {second}\n\n{table(compared)}")
    for line in remarks(a, b):
        print(f"note: {line}")


if __name__ == "__main__":
    run_command(main)
