"""Data sets by name. A data set is `__len__` and `__getitem__(i) -> Sample`."""

from __future__ import annotations

import importlib
import inspect
from typing import Protocol

from seg2any.data.sample import Sample
from seg2any.errors import UserError

CATALOG = {"shapes": "seg2any.data.shapes:ShapesDataset"}


class DataSet(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_data_set(name: str | None, params: dict) -> DataSet:
    """The data set `name` made with `params`. Raises UserError for an unknown name or parameter."""
    if name not in CATALOG:
        raise UserError(f"data set {name!r} does not exist; choose one of {', '.join(CATALOG)}")
    module, attribute = CATALOG[name].split(":")
    cls = getattr(importlib.import_module(module), attribute)
    accepted = inspect.signature(cls).parameters
    for key in params:
        if key not in accepted:
            raise UserError(f"data set {name}: unknown parameter '{key}'; it takes {', '.join(accepted)}")
    return cls(**params)
