"""Checkpoints: named objects in, one folder out; complete or absent, newest complete one always kept.

output_dir/checkpoint-1000/default/pytorch_lora_weights.safetensors   the published layout
                           cond/pytorch_lora_weights.safetensors
                           training_state.safetensors                 what a resumed run needs beside them
                           config.yaml
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seg2any.errors import UserError
from seg2any.training.state_file import DamagedState, read_state, write_state

STATE = "training_state.safetensors"
FILES = "files"  # in the state: the adapter files beside it, and their bytes


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Trainable:
    """The parameters of a model that are trained, as a Stateful in their own precision."""

    def __init__(self, model: nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.parameters.keys():
            raise UserError("checkpoint: its adapters have other layers than this run; use the config it was made with")
        for name, parameter in self.parameters.items():
            if parameter.shape != state[name].shape:
                raise UserError(f"checkpoint: {name} is {list(state[name].shape)} there, {list(parameter.shape)} here")
            parameter.data.copy_(state[name])


class Average:
    """Exponential moving average of parameters, in fp32: a <- d a + (1 - d) p, with d growing to `decay`.

    With decay 0 it is the parameters themselves and costs nothing.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        if not self.decay:
            return
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))  # early weights are forgotten sooner
        torch._foreach_lerp_(self.values, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside this context, its own weights before and after."""
        if not self.decay:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._write(self.values)
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for value, loaded in zip(self.values, state["values"], strict=True):
            value.copy_(loaded)


class Identity:
    """What must not change in the middle of a run. Loading compares instead of overwriting."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key in sorted(self.values.keys() | state.keys()):
            before, now = state.get(key), self.values.get(key)
            if before != now:
                raise UserError(
                    f"{key}: {before!r} in the checkpoint, {now!r} now; resume with the old value, or start a new run "
                    "from its adapters with model.lora_ckpt_path"
                )


class Checkpoints:
    """The checkpoints of one run; `limit` is how many are kept (None: all)."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = Path(folder), limit

    def steps(self) -> dict[int, Path]:
        """Step -> folder of every checkpoint, oldest first. Temporary folders have other names."""
        found = {}
        for path in self.folder.glob("checkpoint-*"):
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def save(self, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Let `write` fill a temporary folder, add the state of the run, rename it to checkpoint-`step`."""
        final = self.folder / f"checkpoint-{step}"
        temporary = self.folder / f".checkpoint-{step}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir(parents=True)
        try:
            write(temporary)
            write_state(temporary / STATE, {**state, FILES: _sizes(temporary)})
            _sync(temporary)
            _remove(final)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._rotate(final)
        return final

    def _rotate(self, written: Path) -> None:
        """Down to `limit`. `written` stays whatever its step: later ones may be damaged. What killed runs left goes."""
        if self.limit is not None:
            others = [path for path in self.steps().values() if path != written]
            for path in others[: max(0, len(others) - self.limit + 1)]:
                _remove(path)
        for pattern in (".checkpoint-*.tmp", ".checkpoint-*.old"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def check(self, wanted: str | None) -> None:
        """Before anything expensive: raise UserError for what `load` and `save` would meet later.

        That is a path that is no folder, a folder that holds another run, or one that cannot be written.
        """
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"project.output_dir: {self.folder} cannot be written; choose another folder")
        path = check_path(wanted)
        if self.steps() and (wanted is None or (path and path.resolve().parent != self.folder.resolve())):
            raise UserError(
                f"project.output_dir: {self.folder} holds checkpoints of another run; "
                "continue it with --resume_from_checkpoint latest, or choose another folder"
            )

    def load(self, wanted: str) -> tuple[Path, dict[str, Any]] | None:
        """(folder, state of every named object) of `latest` or of any path; None if `latest` finds none.

        `latest` passes over damaged checkpoints with a warning. Raises UserError if a path is not a complete
        checkpoint, and if `latest` finds damaged ones only.
        """
        if (path := check_path(wanted)) is not None:
            return path, _read_state(path)
        steps = self.steps()
        for path in reversed(steps.values()):
            try:
                return path, _read_state(path)
            except UserError as error:
                warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
        if steps:
            raise UserError(f"project.output_dir: every checkpoint in {self.folder} is damaged; choose another folder")
        return None


def check_path(wanted: str | None) -> Path | None:
    """The folder that `resume_from_checkpoint` names, None for `latest` and for nothing. Raises UserError."""
    if wanted in (None, "latest"):
        return None
    path = Path(wanted)
    if not path.is_dir():
        raise UserError(f"resume_from_checkpoint: {path} is not a folder; give `latest` or a checkpoint-N folder")
    if not (path / STATE).exists():
        raise UserError(f"{path}: no {STATE} in it, so no training can resume from it; give a checkpoint-N folder")
    return path


def _read_state(path: Path) -> dict[str, Any]:
    """Of a checkpoint that is complete: its adapters are beside it as they were written."""
    try:
        state = read_state(path / STATE)
    except FileNotFoundError:
        raise UserError(f"{path}: no {STATE} in it, so no training can resume from it") from None
    except DamagedState as error:
        raise UserError(f"{error}; resume from another checkpoint") from None
    except OSError as error:
        raise UserError(f"{path / STATE}: {error}; resume from another checkpoint") from None
    for name, size in state.pop(FILES, {}).items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise UserError(f"{path / name}: missing or cut short; resume from another checkpoint")
    return state


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of the adapters."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.glob("*/*"))}


def _sync(folder: Path) -> None:
    """Everything in `folder` is on the disk before it gets its final name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a kill leaves no half of it under that name."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
