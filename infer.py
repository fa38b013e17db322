"""Make images from segmentation masks and captions: the published name of `seg2any generate`."""

from __future__ import annotations

import sys

from seg2any.commands import generate
from seg2any.system.interrupts import run_command


def main() -> int:
    """Run this process's command line and return the exit status."""
    return generate.main(sys.argv[1:], "infer.py")


if __name__ == "__main__":
    run_command(main)
