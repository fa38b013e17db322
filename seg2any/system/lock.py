"""Which process is at something, by a lock on a file.

The kernel keeps the lock for the process, so one that is killed leaves none behind, and those that it has forked do not
have it. On network file systems it counts for all machines. Windows and some file systems have none: there, who asks is
warned, and told that the file is free.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None

RUNNING = ".running"  # the file of a folder that one process at a time works in


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[bool]:
    """Whether `path`, which is made, is this process's until the end of the block; False if it is another's.

    Several processes may have it `shared`. A process that asks for what it has already is told True, and gives it up
    with the first of its blocks that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        yield _is_had(file, shared)


def _is_had(file, shared: bool) -> bool:
    if fcntl:
        with contextlib.suppress(OSError):
            try:
                fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            return True
    warnings.warn(f"{file.name}: files cannot be locked here; do not start the same twice at once", stacklevel=4)
    return True
