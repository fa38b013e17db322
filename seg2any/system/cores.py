"""Count the cores that this process may use, and those of them that are idle.

Affinity masks and the limits of control groups count, as batch systems and containers set them. Systems other than
Linux tell neither siblings nor load.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SYSTEM = Path("/")
LOOKED_FOR = 0.1  # seconds; the kernel counts hundredths


def usable_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def n_processes_at_a_time() -> int:
    """Count the processes that can run side by side: usable CPUs, within the quota; at least 1."""
    return max(1, math.floor(min(len(usable_cpus()), cpu_quota())))


def n_usable_cores() -> int:
    """Count the physical cores that this process may use, at least 1; 0 if the system does not tell."""
    cores = len(physical_cores())
    return cores and max(1, math.floor(min(cores, cpu_quota())))


def n_idle_cores() -> int:
    """Count the usable cores that are idle now, at least 1; 0 if the system does not tell.

    It takes a tenth of a second.
    """
    usable = n_usable_cores()
    return usable and max(1, min(usable, round(sum(idle_shares()))))


def physical_cores() -> set[frozenset[int]]:
    """Group the usable CPUs by core, since those of one core share its arithmetic units."""
    found, usable = set(), usable_cpus()
    for cpu in usable:
        siblings = SYSTEM / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            found.add(frozenset(_numbers(siblings.read_text())) & usable)
        except (OSError, ValueError):
            return set()
    return found


def cpu_quota() -> float:
    """Return the CPUs' worth of time that control groups grant; inf without a limit."""
    limits = [math.inf]
    for folder, names in _control_groups():
        try:
            quota, period = (int(text) for name in names for text in (folder / name).read_text().split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:  # version 1 writes -1 where there is no limit
            limits.append(quota / period)
    return min(limits)


def idle_shares() -> list[float]:
    """Return the idle share, 0 to 1, of every core in the next moment; a core is idle if all its CPUs are."""
    before, began = _idle_seconds(), time.monotonic()
    time.sleep(LOOKED_FOR)
    after, passed = _idle_seconds(), time.monotonic() - began
    cores = physical_cores()
    if not before.keys() & after.keys() >= {cpu for core in cores for cpu in core}:
        return [1.0] * len(cores)
    return [min(1.0, min(after[cpu] - before[cpu] for cpu in core) / passed) for core in cores]


def _idle_seconds() -> Mapping[int, float]:
    try:
        rows = [line.split() for line in (SYSTEM / "proc/stat").read_text().splitlines()]
    except OSError:
        return {}
    ticks = os.sysconf("SC_CLK_TCK")
    return {  # the columns are user, nice, system, idle, waiting for disks, ...
        int(name[3:]): (int(times[3]) + int(times[4])) / ticks
        for name, *times in filter(None, rows)
        if name.startswith("cpu") and name != "cpu"
    }


def _control_groups() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield this process's control groups up to the root, each with its files of quota and period."""
    try:
        rows = (SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for row in rows:
        _, controllers, place = row.split(":", 2)
        if not controllers:  # version 2
            root, names = SYSTEM / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            root, names = SYSTEM / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        here = root / place.lstrip("/")
        yield from ((folder, names) for folder in (here, *here.parents) if folder.is_relative_to(root))


def _numbers(text: str) -> Iterator[int]:
    """Read a list of the kernel, such as 0-3,8."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
