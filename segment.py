"""Find regions in images: the name in this repository of `seg2any segment`."""

from __future__ import annotations

import sys

from seg2any.commands import segment
from seg2any.system.interrupts import run_command


def main() -> int:
    """Run this process's command line and return the exit status."""
    return segment.main(sys.argv[1:], "segment.py")


if __name__ == "__main__":
    run_command(main)
