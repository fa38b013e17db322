"""`python -m eval.ablation`: measures what is missing, then writes table, pictures and the verdict on every trend."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eval.ablation.options import parse_options
from seg2any.command import exit_status
from seg2any.inference.console import plain_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted."""
    options = parse_options(arguments)

    def measure() -> None:
        with plain_messages():
            from eval.ablation.run import run  # takes seconds to import: not before --help is answered

            run(options)

    return exit_status("eval.ablation", measure, "finished rows are kept, start again to go on")


if __name__ == "__main__":
    sys.exit(main())
