"""One run at a time writes into a folder: two would remove each other's unfinished checkpoints.

The kernel keeps the lock, so a killed run leaves none behind, and neither do processes that it had forked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from seg2any.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there, nothing is locked
    fcntl = None

NAME = ".running"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, `folder` belongs to this process. Raises UserError if it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "w", encoding="utf-8") as file:
        if fcntl:
            _lock(folder, file, fcntl.LOCK_EX)
        yield


def check_free(folder: Path) -> None:
    """Raise UserError if another process is inside `held(folder)`."""
    if fcntl and (folder / NAME).exists():
        with open(folder / NAME, "r+", encoding="utf-8") as file:
            _lock(folder, file, fcntl.LOCK_SH)  # shared: processes of one run ask at the same time


def _lock(folder: Path, file, kind: int) -> None:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"project.output_dir: another run is writing into {folder}; wait for it, end it, or choose another folder"
        ) from None
    except OSError:
        return  # a file system without locks
