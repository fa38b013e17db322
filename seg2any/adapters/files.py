"""Add, load and save the two LoRA adapters of Seg2Any (paper eq. 4), `default` and `cond`.

`transformer` is a diffusers model with `adapter_layers`, the names of the Linear layers of each adapter: all of the
blocks for `default`, those that condition tokens pass for `cond`. Written files are in diffusers' format, with the
published names: <folder>/default/pytorch_lora_weights.safetensors, <folder>/cond/... and the card,
<folder>/adapter.json. Files of other trainers are read, too: `seg2any.adapters.pairs` knows their names,
`seg2any.adapters.alpha` the places of alpha.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from seg2any.adapters.alpha import PREFIX
from seg2any.adapters.card import CARD_KEY, AdapterCard, read_card, write_card
from seg2any.adapters.fold import refuse_folded
from seg2any.adapters.lora_file import WEIGHTS_FILE, check_layers, read_lora, weights_file
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, sort_metadata, user_path
from seg2any.system.shipped import input_path

__all__ = [
    "COND",
    "DEFAULT",
    "WEIGHTS_FILE",
    "AdapterCard",
    "add_adapters",
    "load_adapters",
    "save_adapters",
    "trainable_parameters",
]


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

    Returns the folder's card, `assumed` if the folder has none. Warns about layers without weights, about weights for
    text encoders, and where card and file contradict each other. Raises UserError for a missing or damaged file, for
    adapters of another model, for exchanged folders, and for a model that has an adapter folded into its weights.
    """
    refuse_folded(transformer, str(folder))
    return read_adapters(transformer, folder, dtype)


def read_adapters(transformer: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> AdapterCard:
    """Load adapters like `load_adapters`, even into a model with a folded adapter."""
    folder = input_path(folder)
    files = {name: file for name in (DEFAULT, COND) if (file := weights_file(folder, name))}
    if DEFAULT not in files:
        raise UserError(f"{folder}: {DEFAULT}/{WEIGHTS_FILE} is missing; give a folder with {DEFAULT}/ and {COND}/")
    found = {name: read_lora(file, transformer) for name, file in files.items()}
    card = read_card(folder, found[DEFAULT].metadata)
    if COND not in found and card.condition.is_use_cond_token:
        if not card.assumed:
            raise UserError(f"{folder}: {COND}/{WEIGHTS_FILE} is missing, but the card requires it; copy it there, too")
        warnings.warn(f"{folder}: {COND}/ is missing, so that images are made without contour tokens", stacklevel=3)
        card = card.without_condition()
    check_layers(transformer.adapter_layers, found)
    configs = {name: lora.config_to_load(transformer.adapter_layers[name], card) for name, lora in found.items()}

    known = getattr(transformer, "peft_config", {})
    transformer.delete_adapters([name for name in (DEFAULT, COND) if name in known])
    for name, lora in found.items():
        weights = lora.weights()
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
