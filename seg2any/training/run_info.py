"""What runs: written into the log at every start of a run."""

from __future__ import annotations

import platform
import sys

from accelerate import Accelerator

from seg2any.system.provenance import circumstances


def run_info(accelerator: Accelerator) -> dict[str, object]:
    """Commit, versions, machine, launcher and command line, as json can hold them."""
    return circumstances(accelerator.device) | {
        "host": platform.node(),
        "processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "command": sys.argv,
    }
