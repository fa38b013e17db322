"""`generate`, published as infer.py: make images from masks and captions. `check` is `generate --check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seg2any.system.allocator import let_segments_grow
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.threads import compute_on_idle_cores

if TYPE_CHECKING:
    from seg2any.generate.options import Options

ADVICE = "the images written so far are complete, start again to go on"


def main(arguments: Sequence[str], program: str) -> int:
    """Return the exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""

    def parse_and_run() -> None:
        from seg2any.generate.options import parse_options  # late: Ctrl-C is handled from the first import on

        run(parse_options(arguments, program))

    return exit_status(program, parse_and_run, ADVICE)


@plain_messages()
def run(options: Options) -> None:
    """Make the images. Raises UserError."""
    from seg2any.generate.early import refuse_early

    refuse_early(options)
    let_segments_grow()
    compute_on_idle_cores()
    from seg2any.generate.run import run  # late: it takes seconds to import

    run(options)
