"""Save and load a pipeline whose transformer weights include the adapter `default`.

<folder>/transformer/   weights under stock names; the config holds the factor with which `default` was added
<folder>/adapters/      `default`, `cond` and their card in the usual format; condition rows need both

Stock diffusers loads the folder as a FLUX that behaves like FLUX with `default`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import read_adapters, save_adapters
from seg2any.adapters.fold import FOLDED_KEY, folded_scale, is_folded, mark_folded
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.errors import UserError

ADAPTERS = "adapters"


def without_adapters(transformer: Seg2AnyTransformer2DModel) -> FluxTransformer2DModel:
    """Build the transformer to save: stock class, stock names, shared weights, no adapters.

    Its config says whether the weights include `default`. Raises UserError for offloaded or quantised weights, and for
    fused adapters: the saved model would not know that they are in its weights and would apply them to condition rows.
    """
    if fused := sorted(_fused(transformer)):
        raise UserError(
            f"{', '.join(fused)}: fused into the weights, but the model is saved without adapters; call unfuse_lora() "
            "first, and load them again on top of the saved model"
        )
    state = {key: value for key, value in transformer.state_dict().items() if ".lora_" not in key}
    weights = {key.replace(".base_layer.", "."): value for key, value in state.items()}
    if any(value.is_meta for value in weights.values()):
        raise UserError("save_pretrained: the weights are offloaded; save the model before you turn on offloading")
    with torch.device("meta"):
        config = {key: value for key, value in transformer.config.items() if key != FOLDED_KEY}
        plain = FluxTransformer2DModel.from_config(config)
    try:
        plain.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError("save_pretrained: the transformer is quantised; save before you quantise") from error
    if is_folded(transformer):
        plain.register_to_config(**{FOLDED_KEY: folded_scale(transformer)})
    return plain


def _fused(transformer: FluxTransformer2DModel) -> set[str]:
    """Return the adapters that `fuse_lora` added to weights which also have our adapters."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    has_ours = {DEFAULT, COND} & {*getattr(transformer, "peft_config", ())}
    return {name for layer in layers for name in layer.merged_adapters} if has_ours else set()


def save_adapters_of_folded(
    transformer: Seg2AnyTransformer2DModel, folder: str | os.PathLike, card: AdapterCard | None
) -> None:
    """Write the adapters that `load_folded` reads. Raises UserError without a card."""
    if card is None:
        raise UserError(f"{folder}: the folded adapter has no card; call load_adapters before fold")
    save_adapters(transformer, Path(folder) / ADAPTERS, card)


def folded_adapters(model: str | os.PathLike) -> Path | None:
    """Return the adapter folder of a pipeline that was saved folded; None for other models.

    Reads one small file.
    """
    try:
        config = json.loads((Path(model) / "transformer" / "config.json").read_bytes())
    except (OSError, ValueError):  # loading the model reports what is wrong with it
        return None
    return Path(model) / ADAPTERS if config.get(FOLDED_KEY) is not None else None


def load_folded(transformer: Seg2AnyTransformer2DModel, folder: str | os.PathLike) -> AdapterCard | None:
    """Load the adapters of a transformer that was saved folded, and mark `default` as folded.

    Returns their card; None for other transformers and on the meta device, where weights do not exist.

    Raises UserError if the adapter folder is missing.
    """
    scale = transformer.config.get(FOLDED_KEY)
    if scale is None or transformer.device.type == "meta":
        return None
    adapters = Path(folder) / ADAPTERS
    if not adapters.is_dir():
        raise UserError(f"{folder}: saved folded, but the folder {ADAPTERS}/ is missing; copy the whole model")
    card = read_adapters(transformer, adapters)
    mark_folded(transformer, scale)
    return card
