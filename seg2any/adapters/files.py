"""Add, load and save the two LoRA adapters of Seg2Any (paper eq. 4), `default` and `cond`.

`transformer` is a diffusers model with `adapter_layers`, the names of the Linear layers of each adapter: all of the
blocks for `default`, those that condition tokens pass for `cond`. Files are in diffusers' format, with the published
names: <folder>/default/pytorch_lora_weights.safetensors, <folder>/cond/... and the card, <folder>/adapter.json.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from seg2any.adapters.card import CARD_KEY, AdapterCard, read_card, write_card
from seg2any.adapters.fold import refuse_folded
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, sort_metadata, user_path

__all__ = ["COND", "DEFAULT", "AdapterCard", "add_adapters", "load_adapters", "save_adapters", "trainable_parameters"]

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."


def add_adapters(
    transformer: nn.Module,
    rank: int = 64,
    alpha: float | None = None,
    dropout: float = 0.0,
    is_use_cond_token: bool = True,
    init_lora_weights: bool | str = True,
) -> None:
    """Add untrained adapters in float32, trainable and active, and freeze the base weights.

    transformer:        a diffusers model with `adapter_layers`
    rank, alpha:        a delta is scaled by alpha / rank and starts at zero; alpha None = rank
    is_use_cond_token:  add `cond` as well as `default`
    init_lora_weights:  as in peft; True (uniform, as published) or "gaussian"

    Raises UserError for a model that has an adapter folded into its weights.
    """
    refuse_folded(transformer, "adding adapters")
    for name in (DEFAULT, COND) if is_use_cond_token else (DEFAULT,):
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            lora_dropout=dropout,
            init_lora_weights=init_lora_weights,
            target_modules=transformer.adapter_layers[name],
        )
        transformer.add_adapter(config, name)
    trainable_parameters(transformer)


def trainable_parameters(transformer: nn.Module) -> list[nn.Parameter]:
    """Make only `default` and `cond` of a diffusers model trainable; return their parameters.

    The parameters become float32 whatever the dtype of the base weights. Raises UserError for a folded model, whose
    `default` acts through the base weights.
    """
    refuse_folded(transformer, "training")
    transformer.requires_grad_(False)
    chosen = []
    for path, parameter in transformer.named_parameters():
        if ".lora_" in path and path.split(".")[-2] in (DEFAULT, COND):
            parameter.data = parameter.data.float()
            chosen.append(parameter.requires_grad_(True))
    return chosen


def switched_off(transformer: nn.Module) -> list[str]:
    """List which of `default` and `cond` are loaded but inactive in a diffusers model.

    The list is empty if all adapters are disabled, which is deliberate.
    """
    layer = next((module for module in transformer.modules() if isinstance(module, BaseTunerLayer)), None)
    if layer is None or layer.disable_adapters:
        return []
    return [name for name in (DEFAULT, COND) if name in transformer.peft_config and name not in layer.active_adapters]


def load_adapters(transformer: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> AdapterCard:
    """Load <folder>/default and, if it exists, <folder>/cond, replacing loaded ones.

    transformer:  a diffusers model with `adapter_layers`; its other adapters stay as they are
    dtype:        of the loaded weights; None = that of the base weights, for generation; float32 for further training

    Returns the folder's card, `assumed` if the folder has none. Raises UserError for a missing or damaged file, for
    adapters of another model, and for a model that has an adapter folded into its weights.
    """
    refuse_folded(transformer, str(folder))
    return read_adapters(transformer, folder, dtype)


def read_adapters(transformer: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> AdapterCard:
    """Load adapters like `load_adapters`, even into a model with a folded adapter."""
    folder = user_path(folder)
    files = {name: folder / name / WEIGHTS_FILE for name in (DEFAULT, COND)}
    if not files[DEFAULT].is_file():
        raise UserError(f"{folder}: {DEFAULT}/{WEIGHTS_FILE} is missing; give a folder with {DEFAULT}/ and {COND}/")
    found = {name: read_lora(file) for name, file in files.items() if file.is_file()}
    for name, (weights, _) in found.items():
        check_pairs(weights, files[name])
        check_fits(transformer, weights, files[name])
    configs = {name: _peft_config(metadata, files[name]) for name, (_, metadata) in found.items()}
    card = read_card(folder, found[DEFAULT][1])
    if COND not in found and card.condition.is_use_cond_token:
        if not card.assumed:
            raise UserError(f"{folder}: {COND}/{WEIGHTS_FILE} is missing, but the card requires it; copy it there, too")
        card = card.without_condition()

    known = getattr(transformer, "peft_config", {})
    transformer.delete_adapters([name for name in (DEFAULT, COND) if name in known])
    for name, (weights, _) in found.items():
        try:
            transformer.load_lora_adapter(weights, adapter_name=name, metadata=configs[name])
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{files[name]}: metadata does not describe a LoRA ({reason}); copy the file again"
            ) from error
        if dtype is not None:  # read again from the file: the loaded weights were rounded to the dtype of the base
            for key, value in weights.items():
                path = key.removeprefix(PREFIX).removesuffix(".weight")
                parameter = transformer.get_parameter(f"{path}.{name}.weight")
                parameter.data = value.to(parameter.device, dtype)
    return card


def read_lora(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a file: weights by published key, and metadata. Raises UserError for a damaged file."""
    try:
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: is not a complete safetensors file ({error}); copy it again") from error


def _peft_config(metadata: dict[str, str], file: Path) -> dict | None:
    """Read the peft config in the metadata; None for published files, which have none."""
    if LORA_ADAPTER_METADATA_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise UserError(
            f"{file}: {LORA_ADAPTER_METADATA_KEY} in its metadata is damaged ({error}); copy the file again"
        ) from error
    return config


def check_pairs(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Raise UserError for an A [rank, in] or B [out, rank] without a partner of equal rank."""
    ends = {".lora_A.weight": ".lora_B.weight", ".lora_B.weight": ".lora_A.weight"}
    for key, weight in weights.items():
        end = key[-len(".lora_A.weight") :]
        if end not in ends:
            continue
        other = key.removesuffix(end) + ends[end]
        if other not in weights:
            raise UserError(f"{file}: {key} is there, but {other} is missing; the file is damaged, copy it again")
        if weight.ndim != 2:
            raise UserError(f"{file}: {key} has shape {list(weight.shape)}, not two axes; copy the file again")
        if end == ".lora_A.weight" and weight.shape[0] != weights[other].shape[-1]:
            ranks = f"{key} has rank {weight.shape[0]}, {other} has rank {weights[other].shape[-1]}"
            raise UserError(f"{file}: {ranks}; the file is damaged, copy it again")


def check_fits(transformer: nn.Module, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Raise UserError for a weight whose layer is missing from the model or has another width."""
    layers = dict(transformer.named_modules())
    for key, weight in weights.items():
        path, _, part = key.removeprefix(PREFIX).partition(".lora_")
        layer = layers.get(path)
        if layer is None:
            raise UserError(f"{file}: {key} has no layer here; the adapters belong to another model, load them there")
        expected = layer.in_features if part.startswith("A") else layer.out_features
        found = weight.shape[-1] if part.startswith("A") else weight.shape[0]
        if found != expected:
            widths = f"{key} is {found} wide, its layer {expected}"
            raise UserError(f"{file}: {widths}; the adapters belong to another model, load them there")


def save_adapters(
    transformer: nn.Module,
    folder: str | os.PathLike,
    card: AdapterCard,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the adapters of a diffusers model and their card to a folder, for `load_adapters`.

    dtype: of the written weights; None = as they are
    Rank and alpha of the card come from the adapters; stock diffusers reads alpha from the file's metadata. If the
    model has no `cond`, a `cond` file from an earlier save is removed. Raises UserError if `default` is not loaded.
    """
    folder, configs = user_path(folder), getattr(transformer, "peft_config", {})
    if DEFAULT not in configs:
        raise UserError(f"{folder}: adapter {DEFAULT!r} is not loaded and cannot be saved; call load_adapters first")
    card = replace(card, rank=configs[DEFAULT].r, alpha=configs[DEFAULT].lora_alpha)
    for name in (DEFAULT, COND):
        if name not in configs:
            (folder / name / WEIGHTS_FILE).unlink(missing_ok=True)
            continue
        weights = get_peft_model_state_dict(transformer, adapter_name=name)
        weights = {PREFIX + key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
        metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: _describe(configs[name]), CARD_KEY: card.to_json()}
        with atomic_write(folder / name / WEIGHTS_FILE) as path:
            save_file(weights, path, metadata)
            sort_metadata(path)
    write_card(folder, card)


def _describe(config: LoraConfig) -> str:
    """Return the peft config as diffusers stores it: JSON with prefixed keys."""
    options = {
        PREFIX + key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    return json.dumps(options, indent=2, sort_keys=True, default=str)
