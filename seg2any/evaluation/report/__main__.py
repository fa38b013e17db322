"""A page for people about one evaluation, or about several of one benchmark side by side.

    python -m seg2any.evaluation.report result/shapes/normal.json -o report.html
    python -m seg2any.evaluation.report hard.json base.json -o comparison.html

The page is one file with the pictures inside; it loads nothing and runs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seg2any.evaluation.report.page import write_page
from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; exit status 0 written, 2 wrong input."""
    parser = Parser(
        prog="python -m seg2any.evaluation.report",
        description=__doc__,
    )
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="FILE.json", help="JSON file that an evaluation wrote"
    )
    parser.add_argument("-o", "--output", type=user_path, default=Path("report.html"), help="default: %(default)s")
    options = parser.parse_args(arguments)

    def write() -> None:
        write_page(options.runs, options.output)
        print(f"report: {options.output}")

    return exit_status("seg2any.evaluation.report", write, "start again")


if __name__ == "__main__":
    run_command(main)
