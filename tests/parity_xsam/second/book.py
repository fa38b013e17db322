"""Files of a set of cases, in the form of the recorded ones."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Value = torch.Tensor | np.ndarray


class Undecided(Exception):
    """A result that rounding may change, so that it is no truth; other random numbers have another."""


class Book:
    """What is to be written, and the random numbers that it is made of.

    tensors  of each file, by case/name
    about    parameters of each case of each file
    """

    def __init__(self, *seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.about: dict[str, dict[str, Any]] = defaultdict(dict)

    def add(self, file: str, case: str, about: dict | None, tensors: dict[str, Value]) -> None:
        """Add a case: its parameters, or None for tensors that cases share, and its tensors."""
        if about is not None:
            self.about[file][case] = about
        for name, value in tensors.items():
            self.tensors[file][f"{case}/{name}" if name else case] = stored(value)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Draw normal numbers that float32 can hold, in float64."""
        return torch.from_numpy(self.rng.normal(0, scale, shape)).float().double()

    def uniform(self, *shape: int) -> torch.Tensor:
        """Draw numbers of 0..1 that float32 can hold, in float64."""
        return torch.from_numpy(self.rng.random(shape)).float().double()

    def between(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def blob(self, height: int, width: int) -> np.ndarray:
        """Draw an ellipse anywhere in a mask bool [H, W], with one pixel at least."""
        row, column = self.rng.random(2) * (height - 1, width - 1)
        high, wide = 1 + self.rng.random(2) * (height, width) / 3
        rows, columns = np.mgrid[:height, :width]
        return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1

    def write(self, folder: Path) -> None:
        """Write cases.json and a file of tensors for each kind."""
        for file, tensors in self.tensors.items():
            save_file(tensors, folder / f"{file}.safetensors")
        meta = {"source": "second set, computed from the published rules"}
        (folder / "cases.json").write_text(json.dumps({**self.about, "meta": meta}), encoding="utf-8")


def stored(value: Value) -> torch.Tensor:
    """Convert to the recorded types: uint8 for flags, int64 for whole numbers, else float32; pictures stay uint8."""
    x = torch.as_tensor(value).detach()
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    elif x.is_floating_point():
        x = x.float()
    elif x.dtype != torch.uint8:
        x = x.long()
    return x.contiguous().clone()


def numbered(name: str, values: Any) -> dict[str, Value]:
    """Name a list of tensors NAME_0, NAME_1 and so on; None is left out."""
    return {f"{name}_{number}": one for number, one in enumerate(values) if one is not None}
