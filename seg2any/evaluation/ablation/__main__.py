"""Run ablations on the `shapes` world: measure missing rows, write table, pictures, trends."""

from __future__ import annotations

from collections.abc import Sequence

from seg2any.evaluation.ablation.options import parse_options
from seg2any.evaluation.program import measured_status
from seg2any.system.interrupts import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(arguments)

    def measure() -> None:
        from seg2any.evaluation.ablation.run import run  # late: the import takes seconds, which --help must not

        run(options)

    return measured_status("seg2any.evaluation.ablation", measure, "finished rows are kept, start again to go on")


if __name__ == "__main__":
    run_command(main)
