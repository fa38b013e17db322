"""Make images from segmentation masks and captions; see `python infer.py --help`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from seg2any.system.allocator import let_segments_grow
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.interrupts import run_command
from seg2any.system.threads import compute_on_idle_cores

if TYPE_CHECKING:
    from seg2any.generate.options import Options


def main() -> int:
    """Return the exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""
    advice = "the images written so far are complete, start again to go on"
    return exit_status("infer.py", parse_and_run, advice)


def parse_and_run() -> None:
    """Read the command line and make the images.

    Raises UserError; SystemExit after --help or a wrong flag.
    """
    from seg2any.generate.options import parse_options

    run(parse_options())


@plain_messages()
def run(options: Options) -> None:
    """Make the images. Raises UserError."""
    from seg2any.layout import Layout

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run reads the folder again and shows the warnings
        Layout.find(options.seg_mask_path)  # report a path without layouts before anything heavy is imported
    let_segments_grow()
    compute_on_idle_cores()
    from seg2any.commands.generate import run  # late: it takes seconds to import

    run(options)


if __name__ == "__main__":
    run_command(main)
