"""Go on after images that cannot be made, and name them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from seg2any.system.console import warn
from seg2any.system.errors import Incomplete, UserError
from seg2any.system.interrupts import was_interrupted


class Failures:
    """Lines about all that a run leaves out: layouts that cannot be used, and images that could not be made.

    explained  makes a context that turns a device's error about memory into MemoryError
    """

    def __init__(self, explained: Callable[[], AbstractContextManager]):
        self.explained = explained
        self.lines: list[str] = []

    def add_layouts(self, errors: Iterable[str], shown: bool) -> None:
        """Add the lines about layouts that cannot be used; shown: print them."""
        new = list(errors)
        self.lines += new
        warn(map(_left_out, new if shown else ()))

    def add_image(self, job: Any, error: Exception) -> None:
        """Name an image that could not be made; raise the error if it is not about this image alone.

        job  has the layout of the image
        """
        try:
            with self.explained():
                raise error
        except (UserError, MemoryError) as known:
            if was_interrupted():
                raise
            line = str(known) if isinstance(known, UserError) else f"{job.layout.path}: {known}"
        self.lines.append(line)
        warn([_left_out(line)])

    def report(self) -> None:
        """Raise Incomplete with all lines, if there is one."""
        if self.lines:
            raise Incomplete("\n".join([f"{len(self.lines)} left out, all others are made:", *self.lines]))


def _left_out(line: str) -> str:
    return f"left out: {line}"
