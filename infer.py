"""Segmentation masks and captions in, images out. `python infer.py --help` shows how."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from seg2any.system.console import exit_status, plain_messages
from seg2any.system.interrupts import run_command

if TYPE_CHECKING:
    from seg2any.generate.options import Options


def main() -> int:
    """Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""
    advice = "the images written so far are complete, start again to go on"
    return exit_status("infer.py", parse_and_run, advice)


def parse_and_run() -> None:
    """Read the command line and make the images. Raises UserError; SystemExit after --help or a wrong flag."""
    from seg2any.generate.options import parse_options

    run(parse_options())


@plain_messages()
def run(options: Options) -> None:
    """Make the images. Raises UserError."""
    from seg2any.layout import Layout

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run looks again, and says what it left out
        Layout.find(options.seg_mask_path)  # a path with nothing to read is known before anything heavy is loaded
    from seg2any.commands.generate import run  # takes seconds to import: not before --help is answered

    run(options)


if __name__ == "__main__":
    run_command(main)
