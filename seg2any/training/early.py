"""Refuse what needs no weights before torch is imported, which takes seconds."""

from __future__ import annotations

import warnings
from pathlib import Path

from seg2any.bases.flux1.recognise import is_local, refuse_other_models
from seg2any.data.catalog import check_data_set, data_set_name
from seg2any.system.errors import UserError
from seg2any.training.config import Config

STATE = "training_state.safetensors"  # of a checkpoint


def refuse_early(config: Config) -> None:
    """Raise UserError for paths and names that a run would refuse anyway."""
    for side, section in (("train", config.data.train), ("val", config.data.val)):
        name = data_set_name(section.type, section.target)
        if name is not None:
            check_data_set(name, section.params, config.data.on_error)
        elif side == "train":
            raise UserError("data.train.type: no data set chosen; for example --data.train.type=shapes")
    check_path(config.resume_from_checkpoint)
    model = config.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run shows them
            name = model.pretrained_model_name_or_path
            if not Path(name).is_file() and is_local(name):  # reading weights in one file takes torch
                refuse_other_models(name)
    except UserError as error:
        raise UserError(f"model.pretrained_model_name_or_path: {error}") from None
    is_new = config.resume_from_checkpoint is None  # a run that goes on has its adapters in the checkpoint
    if is_new and model.lora_ckpt_path is not None and not Path(model.lora_ckpt_path).is_dir():
        raise UserError(
            f"model.lora_ckpt_path: {model.lora_ckpt_path} is no folder; give one that holds default/ and cond/"
        )


def check_path(wanted: str | None) -> Path | None:
    """Return the folder that `resume_from_checkpoint` names; None for `latest` and null.

    Raises UserError.
    """
    if wanted in (None, "latest"):
        return None
    path = Path(wanted)
    if not path.is_dir():
        raise UserError(f"resume_from_checkpoint: {path} is not a folder; give `latest` or a checkpoint-N folder")
    if not (path / STATE).exists():
        raise UserError(f"{path}: has no {STATE}, so no run can resume from it; give a checkpoint-N folder")
    return path
