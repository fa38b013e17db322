"""Data sets by name, and what every data set offers."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

from seg2any.data.annotation import Annotation
from seg2any.data.sample import Sample
from seg2any.system.errors import UserError
from seg2any.training.config import DataSet as DataSetConfig

CATALOG = {
    "ade20k": "seg2any.data.ade20k:ADE20KDataset",
    "coco_stuff": "seg2any.data.coco_stuff:COCOStuffDataset",
    "folder": "seg2any.data.folder:FolderDataset",
    "sacap_1m": "seg2any.data.sacap_1m:SACap1MDataset",
    "shapes": "seg2any.data.shapes:ShapesDataset",
}
PUBLISHED_TARGETS = {
    "dataset.ade20k_dataset.ADE20KDataset": "ade20k",
    "dataset.coco_stuff_dataset.COCOStuffDataset": "coco_stuff",
    "dataset.sacap_1m_dataset.SACap_1M_Dataset": "sacap_1m",
}
# Settings of the run that published configs repeat among a data set's parameters; data sets do not depend on them.
REPEATED = ("resolution", "cond_scale_factor", "is_group_bucket")


class DataSet(Protocol):
    """`len(data)` samples in a fixed order. Safe to use in several processes at once (picklable, nothing kept open)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Image and layout, both at the image's own size."""

    def key(self, index: int) -> str:
        """The sample's name, unique in the data set and the same in every run."""

    def annotation(self, index: int) -> Annotation:
        """Everything but the image, without reading the image."""

    def photo_digest(self, index: int) -> str:
        """Differs for different photos of one key; "" where they never change."""

    def fingerprint(self) -> str:
        """sha256 hex digest of what decides keys, captions and regions; changes when any of them changes."""


def data_set_name(config: DataSetConfig) -> str | None:
    """The name that a config's section gives its data set; the published class paths are understood."""
    return config.type or PUBLISHED_TARGETS.get(config.target or "", config.target)


@runtime_checkable
class ClosedSet(Protocol):
    """A data set without global captions, whose regions' captions are all among `class_captions`."""

    class_captions: tuple[str, ...]


def open_data_set(name: str | None, params: dict, on_error: str = "skip") -> DataSet:
    """The data set `name` made with `params`, less those of REPEATED; `on_error` goes to those that read files.

    Raises UserError for an unknown name, for a parameter that is unknown, missing or of another type, and for what the
    data set itself refuses.
    """
    if name not in CATALOG:
        raise UserError(f"data set {name!r} does not exist; choose one of {', '.join(CATALOG)}")
    module, attribute = CATALOG[name].split(":")
    cls = getattr(importlib.import_module(module), attribute)
    accepted = inspect.signature(cls).parameters
    hints = get_type_hints(cls.__init__)
    if not isinstance(params.get("is_group_bucket", False), bool):
        raise UserError(f"data set {name}: parameter 'is_group_bucket' is {params['is_group_bucket']!r}; give bool")
    params = {key: value for key, value in params.items() if key in accepted or key not in REPEATED}
    if "on_error" in accepted:
        params.setdefault("on_error", on_error)
    for key, value in params.items():
        if key not in accepted:
            raise UserError(f"data set {name}: unknown parameter '{key}'; {_instead(key, accepted)}")
        if not _is_a(value, hints.get(key, Any)):
            raise UserError(f"data set {name}: parameter '{key}' is {value!r}; give {_in_words(hints[key])}")
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in params:
            raise UserError(f"data set {name}: parameter '{key}' is missing; give data.<train or val>.params.{key}")
    return cls(**params)


def _instead(key: str, accepted: Iterable[str]) -> str:
    """The parameter that was probably meant, else all."""
    known = [*accepted, *REPEATED]
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known)}"


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
