"""Store nested states in a safetensors file: tensors as such, the rest as json metadata."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from seg2any.system.files import atomic_write, sort_metadata

TENSOR = "tensor"  # {"tensor": name} stands for a tensor of the file


class DamagedState(ValueError):
    """The file does not hold a complete state; the message says why."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, any nesting of dicts, lists, numbers, texts and tensors."""
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_without_tensors(state, "", tensors))
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"state": described, "crc32": _checksum(described, tensors)})
        sort_metadata(temporary)


def _checksum(described: str, tensors: dict[str, Tensor]) -> str:
    """Sum all content: a disk that loses a block leaves the file's length and header unchanged."""
    value = zlib.crc32(described.encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(uint8).numpy(), value)
    return f"{value:08x}"


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
    """Read a state, with tensors on the CPU and tuples as lists.

    Raises FileNotFoundError or DamagedState.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = metadata["state"]
        if metadata.get("crc32") not in (None, _checksum(described, tensors)):  # None: written before there was one
            raise ValueError
        state = _with_tensors(json.loads(described), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedState(f"{path}: damaged ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise DamagedState(f"{path}: damaged (it holds no state)")
    return state


def read_plain(path: Path, name: str) -> Any:
    """Read the top-level value `name`, which holds no tensors; None if there is none.

    Quick, since it reads no tensor and checks no sum, so the file may still be damaged. Raises as `read_state` does.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["state"]).get(name)
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise DamagedState(f"{path}: damaged ({type(error).__name__})") from None


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
