"""Fold adapter `default` into the base weights: W' = W + s B A (paper eq. 4).

Text and image rows then pass plain layers. Condition rows, on which `default` must not act, get it subtracted as a
low-rank delta: s_c B_c A_c - s B A instead of s_c B_c A_c, see `seg2any.adapters.routing`. The adapters stay loaded, so
saving them and routing others is unchanged. `transformer` is a diffusers model to which adapters were added.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.adapters.routing import DEFAULT
from seg2any.system.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FOLDED_KEY = "_seg2any_folded_scale"  # config key of a transformer that was saved with `default` in its weights


def fold(transformer: nn.Module) -> None:
    """Add `default`, with its current scale, to the base weights of a diffusers model.

    The sum is computed in float32 and rounded once.

    Raises UserError if `default` is inactive or folded already, and for quantised or offloaded base weights.
    """
    if is_folded(transformer):
        raise UserError(f"adapter {DEFAULT!r} is already folded into the base weights; call unfold() to take it out")
    active = transformer.active_adapters() if getattr(transformer, "peft_config", None) else ()
    if DEFAULT not in active:
        raise UserError(f"adapter {DEFAULT!r} is not active and cannot be folded; call load_adapters first")
    layers = dict(_layers_of_default(transformer))
    for name, layer in layers.items():
        _check_foldable(name, layer)
    for layer in layers.values():
        _add(layer, layer.scaling[DEFAULT])
        layer.folded = {DEFAULT: layer.scaling[DEFAULT]}


def unfold(transformer: nn.Module) -> None:
    """Subtract `default` from the base weights again, rounded once to their dtype.

    In 16-bit precision some weights may differ from the original by one ulp. Raises UserError if `default` is not
    folded.
    """
    if not is_folded(transformer):
        raise UserError(f"adapter {DEFAULT!r} is not folded into the base weights; call fold() before unfold()")
    for name, layer in _layers_of_default(transformer):
        _check_foldable(name, layer)
    for _, layer in _layers_of_default(transformer):
        _add(layer, -layer.folded.pop(DEFAULT))
    transformer.register_to_config(**{FOLDED_KEY: None})


def is_folded(transformer: nn.Module) -> bool:
    """Return True if `default` is loaded and folded into the base weights."""
    return any(getattr(layer, "folded", None) for _, layer in _layers_of_default(transformer))


def refuse_folded(transformer: nn.Module, what: str) -> None:
    """Raise UserError, starting with `what`, if the base weights contain an adapter."""
    if is_folded(transformer) or transformer.config.get(FOLDED_KEY) is not None:
        raise UserError(
            f"{what}: the model already has an adapter folded into its weights; unfold it, or use the model that "
            "the adapter was trained on"
        )


def folded_scale(transformer: nn.Module) -> float:
    """Return the scale with which `default` was folded.

    Raises UserError if it differs between layers.
    """
    scales = {layer.folded[DEFAULT] for _, layer in _layers_of_default(transformer)}
    if len(scales) != 1:
        raise UserError(f"adapter {DEFAULT!r} was folded with {len(scales)} different weights; fold it with one weight")
    return scales.pop()


def mark_folded(transformer: nn.Module, scale: float) -> None:
    """Record that the base weights contain scale x B A of the loaded `default`.

    Its own scale is set to the same value.
    """
    for _, layer in _layers_of_default(transformer):
        layer.scaling[DEFAULT] = scale
        layer.folded = {DEFAULT: scale}


def _layers_of_default(transformer: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and DEFAULT in module.lora_A:
            yield name, module


def _check_foldable(name: str, layer: LoraLayer) -> None:
    base = layer.base_layer
    weight = base.weight
    if type(base) is not nn.Linear or type(weight) is not nn.Parameter or weight.dtype not in FLOATS:
        kind = type(base).__name__ if type(base) is not nn.Linear else f"{type(weight).__name__} {weight.dtype}"
        raise UserError(
            f"{name} is quantised ({kind}), too coarsely to hold the adapter; fold before quantising, or leave the "
            "adapter unfolded"
        )
    if weight.is_meta:
        raise UserError(f"{name} is offloaded; fold first, then turn offloading on")


@torch.no_grad()
def _add(layer: LoraLayer, scale: float) -> None:
    """Compute W += scale x B A in float32, rounded once.

    In place, because offloading and shared weights keep references to the tensor.
    """
    down, up, base = layer.lora_A[DEFAULT], layer.lora_B[DEFAULT], layer.base_layer
    delta = up.weight.float().to(base.weight.device) @ down.weight.float().to(base.weight.device)
    base.weight.copy_(base.weight.float().add_(delta, alpha=scale))
