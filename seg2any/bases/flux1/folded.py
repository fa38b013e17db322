"""A folded model on disk: the folder of a FLUX pipeline whose transformer contains `default`, and its adapters.

<folder>/transformer/            stock names; its config says that, and with which factor, `default` is in the weights
<folder>/adapters/               `default`, `cond` and their card, as everywhere; condition rows need both

Stock diffusers reads the folder as a FLUX that has learned what `default` has learned.
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
    """What is to be saved: a stock transformer that shares the base weights, under their stock names, without adapters.

    Its config says whether `default` is in them. Raises UserError for weights that stock names cannot hold, and for
    fused adapters, which would act on condition rows as well once nobody knows that they are there.
    """
    if fused := sorted(_fused(transformer)):
        raise UserError(
            f"{', '.join(fused)}: fused into the weights, of a model that is to be saved without adapters; call "
            "unfuse_lora() first, and load them again on top of the saved model"
        )
    state = {key: value for key, value in transformer.state_dict().items() if ".lora_" not in key}
    weights = {key.replace(".base_layer.", "."): value for key, value in state.items()}
    if any(value.is_meta for value in weights.values()):
        raise UserError("the weights are offloaded; save the model before offloading is turned on")
    with torch.device("meta"):
        config = {key: value for key, value in transformer.config.items() if key != FOLDED_KEY}
        plain = FluxTransformer2DModel.from_config(config)
    try:
        plain.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError("a quantised transformer cannot be saved like this; save it before quantising") from error
    if is_folded(transformer):
        plain.register_to_config(**{FOLDED_KEY: folded_scale(transformer)})
    return plain


def _fused(transformer: FluxTransformer2DModel) -> set[str]:
    """Names of adapters that `fuse_lora` has put into weights beside adapters of ours."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    has_ours = {DEFAULT, COND} & {*getattr(transformer, "peft_config", ())}
    return {name for layer in layers for name in layer.merged_adapters} if has_ours else set()


def save_adapters_of_folded(
    transformer: Seg2AnyTransformer2DModel, folder: str | os.PathLike, card: AdapterCard | None
) -> None:
    """Write what `load_folded` reads beside the transformer. Raises UserError without a card."""
    if card is None:
        raise UserError(f"{folder}: the folded adapter was not loaded and has no card, so it could not be used again")
    save_adapters(transformer, Path(folder) / ADAPTERS, card)


def folded_adapters(model: str | os.PathLike) -> Path | None:
    """The folder of adapters inside a pipeline folder that was saved folded; None for any other model. Light."""
    try:
        config = json.loads((Path(model) / "transformer" / "config.json").read_bytes())
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return None
    return Path(model) / ADAPTERS if config.get(FOLDED_KEY) is not None else None


def load_folded(transformer: Seg2AnyTransformer2DModel, folder: str | os.PathLike) -> AdapterCard | None:
    """Load the adapters of a transformer that was saved folded, and mark `default` as folded; None for any other, and
    for one on the meta device, which is there for its sizes.

    Raises UserError if they are not beside the transformer.
    """
    scale = transformer.config.get(FOLDED_KEY)
    if scale is None or transformer.device.type == "meta":
        return None
    adapters = Path(folder) / ADAPTERS
    if not adapters.is_dir():
        raise UserError(f"{folder}: the model was saved folded, but has no folder {ADAPTERS}/; copy all of it")
    card = read_adapters(transformer, adapters)
    mark_folded(transformer, scale)
    return card
