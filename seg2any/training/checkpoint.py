"""Write and read checkpoints: each is a folder that is complete or absent.

The newest complete one is always kept.

output_dir/checkpoint-1000/default/pytorch_lora_weights.safetensors   the published layout
                           cond/pytorch_lora_weights.safetensors
                           training_state.safetensors                 optimizer, average, progress, identity
                           config.yaml
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from seg2any.system.errors import UserError
from seg2any.system.files import check_free
from seg2any.training.early import STATE, check_path
from seg2any.training.state_file import DamagedState, read_plain, read_state, write_state

FILES = "files"  # key of the state: names and bytes of the weights' files beside it


class Checkpoints:
    """The checkpoints of one run, of which the newest `limit` are kept (None: all)."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = Path(folder), limit

    def steps(self) -> dict[int, Path]:
        """Map step to folder for every checkpoint, oldest first; temporary folders have other names."""
        found = {}
        for path in self.folder.glob("checkpoint-*"):
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def save(self, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Let `write` fill a temporary folder, add the state, and rename it to checkpoint-`step`.

        Raises UserError if it cannot be written, for example on a full disk, and leaves nothing behind.
        """
        final = self.folder / f"checkpoint-{step}"
        temporary = self.folder / f".checkpoint-{step}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            write_state(temporary / STATE, {**state, FILES: _sizes(temporary)})
            _sync(temporary)
            _remove(final)
            os.replace(temporary, final)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{final}: cannot be written: {error}; older checkpoints are unchanged") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._rotate(final)
        return final

    def _rotate(self, written: Path) -> None:
        """Remove old checkpoints down to `limit`, and folders that killed runs left behind.

        `written` stays whatever its step, since later ones may be damaged.
        """
        if self.limit is not None:
            others = [path for path in self.steps().values() if path != written]
            for path in others[: max(0, len(others) - self.limit + 1)]:
                try:
                    _remove(path)
                except OSError as error:
                    warnings.warn(f"{path}: cannot be removed: {error}; make room by hand", stacklevel=3)
        for pattern in (".checkpoint-*.tmp", ".checkpoint-*.old"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def check(self, wanted: str | None) -> None:
        """Raise UserError early for everything that would stop `load` and `save` later.

        Refused are a path that is not a folder, a folder that holds another run or is in use by one, and a folder that
        cannot be written.
        """
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"project.output_dir: {self.folder} cannot be written; choose another folder")
        check_free(self.folder)
        path = check_path(wanted)
        if self.steps() and (wanted is None or (path and path.resolve().parent != self.folder.resolve())):
            raise UserError(
                f"project.output_dir: {self.folder} holds checkpoints of another run; "
                "continue it with --resume_from_checkpoint latest, or choose another folder"
            )

    def remark(self, wanted: str | None) -> str:
        """Return a line if `latest` finds no checkpoint, with the folder that was probably meant; else ""."""
        if wanted != "latest" or self.steps():
            return ""
        place = self.folder.absolute()
        others = {path.parent.name for path in place.parent.glob("*/checkpoint-*") if path.is_dir()}
        near = difflib.get_close_matches(place.name, sorted(others), 1)
        meant = f"; did you mean {self.folder.with_name(near[0])}?" if near else ""
        return f"latest finds no checkpoint in {self.folder}, so a new run starts there{meant}"

    def plain(self, wanted: str | None, name: str) -> Any:
        """Return the tensor-free value `name` of the checkpoint that `load` would return.

        None without a checkpoint.
        """
        found = self._newest(wanted, name)
        return found and found[1]

    def find(self, wanted: str | None) -> Path | None:
        """Return the folder of the checkpoint that `load` would return; None without a checkpoint."""
        found = self._newest(wanted, FILES)
        return found and found[0]

    def _newest(self, wanted: str | None, name: str) -> tuple[Path, Any] | None:
        """Find the checkpoint that `load` would return, by file sizes, and its tensor-free `name`."""
        path = check_path(wanted)
        candidates = [] if wanted is None else [path] if path else reversed(self.steps().values())
        for path in candidates:
            with contextlib.suppress(DamagedState, UserError, OSError):  # `load` reports it
                _check_files(path, read_plain(path / STATE, FILES) or {})
                return path, read_plain(path / STATE, name)
        return None

    def load(self, wanted: str) -> tuple[Path, dict[str, Any]] | None:
        """Read folder and state, by name, of `latest` or of any path.

        None if `latest` finds no checkpoint.

        `latest` skips damaged checkpoints with a warning. Raises UserError if a path is not a complete checkpoint, and
        if `latest` finds only damaged ones.
        """
        if (path := check_path(wanted)) is not None:
            return path, _read_state(path)
        steps = self.steps()
        for path in reversed(steps.values()):
            try:
                return path, _read_state(path)
            except UserError as error:
                warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
        if steps:
            raise UserError(f"project.output_dir: every checkpoint in {self.folder} is damaged; choose another folder")
        return None


def _read_state(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint and check that its files of weights are complete."""
    try:
        state = read_state(path / STATE)
    except FileNotFoundError:
        raise UserError(f"{path}: has no {STATE}, so no run can resume from it; give a checkpoint-N folder") from None
    except DamagedState as error:
        raise UserError(f"{error}; resume from another checkpoint") from None
    except OSError as error:
        raise UserError(f"{path / STATE}: {error}; resume from another checkpoint") from None
    _check_files(path, state.pop(FILES, {}))
    return state


def _check_files(folder: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name}: is missing or cut short; resume from another checkpoint")


def _sizes(folder: Path) -> dict[str, int]:
    """Count the bytes of every file of weights."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.safetensors"))}


def _sync(folder: Path) -> None:
    """Flush everything in `folder` to the disk, before it gets its final name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a checkpoint; rename it first, so that a kill leaves no half of it under its name."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
