"""Train Seg2Any's adapters: the published name of `seg2any train`."""

from __future__ import annotations

import sys

from seg2any.commands import train
from seg2any.system.interrupts import run_command


def main(arguments: list[str]) -> int:
    """Run a command line and return the exit status."""
    return train.main(arguments, "train.py")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
