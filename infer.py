"""Segmentation masks and captions in, images out. `python infer.py --help` shows how."""

from __future__ import annotations

import sys

from seg2any.errors import UserError
from seg2any.inference.options import parse_options


def main() -> int:
    """Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted."""
    options = parse_options()
    try:
        from seg2any.inference.run import OutOfMemory, run  # after the options: it takes seconds to import
    except KeyboardInterrupt:
        return 130
    try:
        run(options)
    except UserError as error:
        return fail(error, 2)
    except OutOfMemory as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; the images written so far are complete, start again to go on", 130)
    return 0


def fail(message: object, status: int) -> int:
    for line in str(message).splitlines():
        print(f"infer.py: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
