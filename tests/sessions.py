"""Processes that a test starts as others would, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def processes_of(session: int) -> list[int]:
    """Of a session that are neither gone nor zombies."""
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
    """Fail if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
