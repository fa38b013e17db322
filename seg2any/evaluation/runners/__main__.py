"""Measure the images of a benchmark: `python -m seg2any.evaluation.runners IMAGES`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seg2any.evaluation.program import measured_status
from seg2any.evaluation.runners.options import parse_options
from seg2any.system.interrupts import run_command

if TYPE_CHECKING:
    from seg2any.evaluation.judges.segmenters import OpenSegmenter


def main(arguments: Sequence[str] | None = None, open_segmenter: OpenSegmenter | None = None) -> int:
    """Run the command line.

    open_segmenter  opens the methods of `segment`; None: there are none

    Exit status: 0 measured, 1 out of memory, 2 wrong input or missing weights, 130 interrupted.
    """
    options = parse_options(arguments)

    def measure() -> None:
        # Late: the import takes seconds, which --help must not.
        from seg2any.evaluation.judges.segmenters import no_segmenter
        from seg2any.evaluation.runners.run import run

        run(options, open_segmenter or no_segmenter)

    return measured_status("seg2any.evaluation.runners", measure, "the images are kept, start again to measure them")


if __name__ == "__main__":
    run_command(main)
