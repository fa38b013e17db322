"""Weights of the judges: by path or hub id, never unpickled, and one clear line where they are missing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from seg2any.system.errors import UserError

Loaded = TypeVar("Loaded")


def weights_file(path: str | Path, what: str, source: str) -> Path:
    """`path` if it is a file. Raises UserError that says what is missing, where it comes from and where to put it."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what}: no file {path}; download {source} and put it there, or give its path")
    return path


def state_dict(path: str | Path, what: str, source: str) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors or .pth file by name; what a training framework wrapped around them is removed.

    Raises UserError if the file is missing, or if it holds more than tensors and plain values.
    """
    path = weights_file(path, what, source)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError):
        raise UserError(
            f"{what}: {path} is damaged, or holds objects that are not loaded for safety; download {source} again, or "
            "save its state_dict alone as .safetensors"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{what}: {path} holds no state_dict; download {source}")
    return content


def pretrained_model(
    cls: type[Loaded], name: str | Path, what: str, source: str, dtype: torch.dtype = torch.float32
) -> Loaded:
    """`cls.from_pretrained(name)` for a model of transformers.

    Raises UserError if `name` is no folder of such a model and cannot be fetched, or if it lacks a weight, which
    transformers would draw at random.
    """
    model, report = _fetched(cls, name, what, source, output_loading_info=True, dtype=dtype)
    lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{what}: {name} lacks {len(lacking)} weights, first {lacking[0]}; fetch `hf download {source}`"
        )
    return model


def pretrained_processor(cls: type[Loaded], name: str | Path, what: str, source: str) -> Loaded:
    """The same for a tokenizer or an image processor."""
    return _fetched(cls, name, what, source)


def _fetched(cls: type, name: str | Path, what: str, source: str, **options: object) -> object:
    try:
        return cls.from_pretrained(str(name), **options)
    except (OSError, ValueError, SafetensorError, RuntimeError, KeyError, TypeError):
        raise UserError(
            f"{what}: {name} is no folder of a {cls.__name__} and is not in the hub's cache; fetch it with "
            f"`hf download {source}`, or give the folder that holds it"
        ) from None


def judge(model: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """The model as judges are used: evaluating, without gradients, on the device."""
    return model.eval().requires_grad_(False).to(device)
