"""Data sets by name. A data set is `__len__` and `__getitem__(i) -> Sample`."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from seg2any.data.sample import Sample
from seg2any.errors import UserError

CATALOG = {"shapes": "seg2any.data.shapes:ShapesDataset"}


class DataSet(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_data_set(name: str | None, params: dict) -> DataSet:
    """The data set `name` made with `params`. Raises UserError for an unknown name, for a parameter that is unknown,
    missing or of another type, and for what the data set itself refuses."""
    if name not in CATALOG:
        raise UserError(f"data set {name!r} does not exist; choose one of {', '.join(CATALOG)}")
    module, attribute = CATALOG[name].split(":")
    cls = getattr(importlib.import_module(module), attribute)
    accepted = inspect.signature(cls).parameters
    hints = get_type_hints(cls.__init__)
    for key, value in params.items():
        if key not in accepted:
            raise UserError(f"data set {name}: unknown parameter '{key}'; it takes {', '.join(accepted)}")
        if not _is_a(value, hints.get(key, Any)):
            raise UserError(f"data set {name}: parameter '{key}' is {value!r}; give {_in_words(hints[key])}")
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in params:
            raise UserError(f"data set {name}: parameter '{key}' is missing; give data.<train or val>.params.{key}")
    return cls(**params)


def _is_a(value: object, hint: Any) -> bool:
    """Whether `value`, read from yaml, suits the annotation of a parameter: lists are tuples, texts are paths."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple and isinstance(value, list | tuple):
        wanted = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        return len(value) == len(wanted) and all(map(_is_a, value, wanted))
    if origin is int or origin is float:
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    return not isinstance(origin, type) or isinstance(value, (str, Path) if origin is Path else origin)


def _in_words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
