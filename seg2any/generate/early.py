"""Refuse what needs no weights before torch is imported, which takes seconds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from seg2any.attention.settings import MAX_ENTITIES, ConditionSettings
from seg2any.bases.flux1.recognise import is_local, refuse_other_models
from seg2any.generate.options import Options
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.system.device import check_device_name
from seg2any.system.errors import UserError
from seg2any.system.files import check_folder
from seg2any.system.hub import names_repository


def refuse_early(options: Options) -> None:
    """Raise UserError for paths, names and layouts that a run would refuse anyway.

    A folder is good enough if one of its layouts can be used: the run names the others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run reads everything again and shows the warnings
        paths = Layout.find(options.seg_mask_path)
        check_folder(options.output_path, "--output_path")
        ConditionSettings().override(options.settings)
        check_device_name(options.device)
        model = options.model
        if not Path(model).is_file() and is_local(model):  # reading weights in one file takes torch
            refuse_other_models(model)
        _refuse_adapter(options.lora_ckpt_path)
        _refuse_layouts(paths, options)


def _refuse_adapter(folder: Path | None) -> None:
    if folder is None or (folder.is_dir() and next(folder.rglob("*.safetensors"), None)):
        return
    if not folder.exists() and names_repository(folder):
        return  # the hub is asked later
    state = "has no .safetensors file in it" if folder.is_dir() else "no such folder"
    raise UserError(f"--lora_ckpt_path {folder}: {state}; give the folder that holds default/ and cond/")


def _refuse_layouts(paths: Iterable[Path], options: Options) -> None:
    errors = []
    for path in paths:
        try:
            layout = Layout.read(path, options.snapping)
        except LayoutError as error:
            errors.append(str(error))
            continue
        if len(layout.masks) <= MAX_ENTITIES:
            return
        errors.append(too_many_regions(path, len(layout.masks)))
    raise UserError("\n".join(dict.fromkeys(errors)))


def too_many_regions(path: Path, count: int) -> str:
    """Return the message about a layout of more regions than attention takes."""
    return f"{path}: has {count} regions, and attention takes {MAX_ENTITIES}; merge some"
