"""One run at a time writes into a folder: two would remove each other's unfinished checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from seg2any.system.errors import UserError
from seg2any.system.lock import RUNNING, locked


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, `folder` belongs to this process. Raises UserError if it is another's."""
    with locked(folder / RUNNING) as is_ours:
        _require(is_ours, folder)
        yield


def check_free(folder: Path) -> None:
    """Raise UserError if another process is inside `held(folder)`."""
    if (folder / RUNNING).exists():
        with locked(folder / RUNNING, shared=True) as is_free:  # processes of one run ask at the same time
            _require(is_free, folder)


def _require(is_free: bool, folder: Path) -> None:
    if not is_free:
        raise UserError(
            f"project.output_dir: another run is writing into {folder}; wait for it, end it, or choose another folder"
        )
