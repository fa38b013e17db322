"""Inspect and await processes that a test starts in a session of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def processes_of(session: int) -> list[int]:
    """Return the ids of a session's running processes; zombies do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until the condition is true; fail when the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
