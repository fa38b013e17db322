"""Measure the images of a benchmark: `python -m eval.runners IMAGES`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eval.runners.options import parse_options
from seg2any.errors import UserError
from seg2any.inference.console import plain_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong input or missing weights, 130 interrupted."""
    options = parse_options(arguments)
    try:
        with plain_messages():
            from eval.runners.run import run  # takes seconds to import: not before --help is answered

            run(options)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written
        for line in str(error).splitlines():
            print(f"eval.runners: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.runners: interrupted; the images are kept, start again to measure them", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
