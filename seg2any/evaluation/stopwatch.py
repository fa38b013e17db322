"""Where the time of a run goes, told at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name of a task.

    >>> clock = Stopwatch()
    >>> with clock("judging"):
    ...     pass
    >>> str(clock)
    'judging 0 s'
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, task: str) -> Iterator[None]:
        """Adds the time inside the block to `task`, also if the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[task] = self.seconds.get(task, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{task} {seconds:.0f} s" for task, seconds in self.seconds.items())
