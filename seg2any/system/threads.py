"""Choose the number of threads before torch is loaded, and let them sleep while they wait.

OpenMP's threads wait for each other by spinning: beside other programs, a thread then spins on the core that the thread
it waits for needs. OpenMP reads its settings when torch is loaded, so commands come here first. torch's own number of
threads counts cores that a container does not grant, and cores that are taken:

    training    all cores that the process may use, whatever the load, so that a resumed run on the same machine rounds
                as before
    inference   those of them that are idle at the start

OMP_NUM_THREADS, and the variables below, stay as the user has set them. On systems other than Linux torch decides.
"""

from __future__ import annotations

import os

from seg2any.system.console import write_line
from seg2any.system.cores import n_idle_cores, n_usable_cores
from seg2any.system.processes import Process

# GNU's OpenMP reads the first two, Intel's and LLVM's the first and the last.
SLEEP_WHILE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
COUNT = "OMP_NUM_THREADS"


def compute_on_all_cores() -> None:
    """Choose the threads of a training process; call it before torch is imported."""
    _wait_asleep()
    if COUNT not in os.environ and (usable := n_usable_cores()):
        os.environ[COUNT] = str(max(1, usable // Process.of(os.environ).local_count))


def compute_on_idle_cores() -> None:
    """Choose the threads of an inference process; call it before torch is imported."""
    _wait_asleep()
    if COUNT in os.environ or not (usable := n_usable_cores()):
        return
    idle = n_idle_cores() if usable > 1 else 1
    os.environ[COUNT] = str(idle)
    if idle < usable:
        write_line(f"{usable - idle} of {usable} cores are busy, so {idle} compute; {COUNT} chooses another number")


def _wait_asleep() -> None:
    for name, value in SLEEP_WHILE_WAITING.items():
        os.environ.setdefault(name, value)
