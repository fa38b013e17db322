"""Count the tokens of every training sample: the published name of `seg2any prepare`."""

from __future__ import annotations

import sys

from seg2any.commands import prepare
from seg2any.system.interrupts import run_command


def main() -> int:
    """Run this process's command line and return the exit status."""
    return prepare.main(sys.argv[1:], "prepare_dataset_bucket_map.py")


if __name__ == "__main__":
    run_command(main)
