"""Open data sets by name, and check their parameters."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from seg2any.data.dataset import DataSet
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.words import probably_meant

CATALOG = {
    "ade20k": "seg2any.data.label_maps:ADE20KDataset",
    "coco_mig": "seg2any.data.layout_sets.coco_mig:COCOMIGDataset",
    "coco_stuff": "seg2any.data.label_maps:COCOStuffDataset",
    "folder": "seg2any.data.folder:FolderDataset",
    "overlaybench": "seg2any.data.layout_sets.overlaybench:OverLayBenchDataset",
    "sa_z": "seg2any.data.layout_sets.sa_z:SAZDataset",
    "sacap_1m": "seg2any.data.sacap_1m:SACap1MDataset",
    "shapes": "seg2any.data.shapes:ShapesDataset",
}
PUBLISHED_TARGETS = {
    "dataset.ade20k_dataset.ADE20KDataset": "ade20k",
    "dataset.coco_stuff_dataset.COCOStuffDataset": "coco_stuff",
    "dataset.sacap_1m_dataset.SACap_1M_Dataset": "sacap_1m",
}
# Settings of the run that published configs repeat among a data set's parameters, where they change nothing.
REPEATED = ("resolution", "cond_scale_factor", "is_group_bucket")


def data_set_name(type_name: str | None, target: str | None) -> str | None:
    """Return the name in CATALOG for `type` and `target` of a config's section.

    Published class paths are translated.

    A name that CATALOG lacks is returned as it is: `open_data_set` refuses it.
    """
    return type_name or PUBLISHED_TARGETS.get(target or "", target)


def open_data_set(name: str | None, params: dict, on_error: str = "skip") -> DataSet:
    """Open the data set `name` with `params`.

    Parameters of REPEATED that the data set does not take are dropped.

    on_error  "skip" or "fail", for data sets that read files; `params` may say otherwise

    Raises UserError as `check_data_set`, and for what the data set itself refuses.
    """
    cls, params = check_data_set(name, params, on_error)
    return cls(**params)


def check_data_set(name: str | None, params: dict, on_error: str = "skip") -> tuple[type[DataSet], dict[str, Any]]:
    """Return the class of a data set and the arguments that it takes, without opening it.

    Raises UserError for an unknown name, and for a parameter that is unknown, missing, of a wrong type, or a path to
    nothing.
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
    paths = {key for key in params if Path in (hints.get(key), *get_args(hints.get(key)))}
    params = {key: user_path(value) if key in paths and value else value for key, value in params.items()}
    for key in paths:
        if accepted[key].default is accepted[key].empty and not params[key].exists():
            kind = "file" if params[key].suffix else "folder"
            raise UserError(f"data set {name}: there is no {kind} {params[key]}; give data.<train or val>.params.{key}")
    return cls, params


def _instead(key: str, accepted: Iterable[str]) -> str:
    """Suggest the parameter that was probably meant, or list all."""
    known = [*accepted, *REPEATED]
    near = probably_meant(key, known)
    return f"did you mean '{near}'?" if near else f"it takes {', '.join(known)}"


def _is_a(value: object, hint: Any) -> bool:
    """Tell whether a yaml value suits a parameter's type: lists are tuples, texts are paths."""
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
    if get_origin(hint) in (Union, UnionType):  # str(hint) is typing.Optional[...] in some versions of Python
        return " | ".join(map(_in_words, get_args(hint)))
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
