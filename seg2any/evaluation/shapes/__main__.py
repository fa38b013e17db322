"""Quality on unseen scenes of the `shapes` world.

Generates an image for every test layout, judges it from its pixels, and prints the result with 95 % intervals between
its ceiling (rendered truth), what the VAE alone can reach, and its floors (the images of other scenes, an empty image).
"""

from __future__ import annotations

from collections.abc import Sequence

from seg2any.evaluation.program import measured_status
from seg2any.evaluation.shapes.options import parse_options
from seg2any.system.interrupts import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured (whether the bars are met or not), 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(arguments, __doc__.split("\n\n")[1])

    def measure() -> None:
        from seg2any.evaluation.shapes.bench import run  # late: the import takes seconds, which --help must not

        run(options)

    return measured_status("seg2any.evaluation.shapes", measure)


if __name__ == "__main__":
    run_command(main)
