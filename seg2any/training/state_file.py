"""Nested states in one file that holds data only: tensors as safetensors, all else as json in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

TENSOR = "tensor"  # {"tensor": name} stands for a tensor of the file


class DamagedState(ValueError):
    """The file is no complete state; the message says why."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """`state`: dicts, lists, numbers, texts and tensors, nested as they like."""
    tensors: dict[str, Tensor] = {}
    described = _without_tensors(state, "", tensors)
    save_file(tensors, path, metadata={"state": json.dumps(described)})


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{name}/{at}", tensors) for at, item in enumerate(value)]
    return value


def read_state(path: Path) -> dict[str, Any]:
    """What was written, tensors on the CPU, tuples as lists. Raises FileNotFoundError, or DamagedState."""
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["state"])
            return _with_tensors(described, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedState(f"{path}: damaged ({type(error).__name__})") from None


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
