"""Segmentation masks and captions in, images out. `python infer.py --help` shows how."""

from __future__ import annotations

import sys
import warnings

from seg2any.generate.options import Options, parse_options
from seg2any.layout import Layout
from seg2any.system.console import exit_status, plain_messages


def main() -> int:
    """Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""
    options = parse_options()
    advice = "the images written so far are complete, start again to go on"
    return exit_status("infer.py", lambda: run(options), advice)


@plain_messages()
def run(options: Options) -> None:
    """Make the images. Raises UserError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run looks again, and says what it left out
        Layout.find(options.seg_mask_path)  # a path with nothing to read is known before anything heavy is loaded
    from seg2any.generate.run import run  # takes seconds to import: not before --help is answered

    run(options)


if __name__ == "__main__":
    sys.exit(main())
