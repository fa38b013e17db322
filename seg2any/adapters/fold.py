"""Adapters at the price of none: `default` becomes part of the base weights (paper eq. 4, W' = W + s B A).

Text and image rows then pass plain layers. Condition rows, which `default` must not act on, take it back by its
low-rank delta: s_c B_c A_c - s B A instead of s_c B_c A_c, see `seg2any.adapters.routing`. The adapters stay in memory,
so the rows of other adapters, their weights and saved adapters are what they were.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.adapters.routing import DEFAULT
from seg2any.system.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FOLDED_KEY = "_seg2any_folded_scale"  # in the config of a transformer whose weights in files contain `default`


def fold(transformer: nn.Module) -> None:
    """Add `default`, as it is scaled now, to the base weights, rounded once to their precision.

    Raises UserError without an active `default`, if it is folded already, and for base weights that cannot take it.
    """
    if is_folded(transformer):
        raise UserError(f"adapter {DEFAULT!r} is folded into the base weights already; unfold() takes it out")
    active = transformer.active_adapters() if getattr(transformer, "peft_config", None) else ()
    if DEFAULT not in active:
        raise UserError(f"no adapter {DEFAULT!r} is active, so there is nothing to fold; call load_adapters first")
    layers = dict(_layers_of_default(transformer))
    for name, layer in layers.items():
        _check_foldable(name, layer)
    for layer in layers.values():
        _add(layer, layer.scaling[DEFAULT])
        layer.folded = {DEFAULT: layer.scaling[DEFAULT]}


def unfold(transformer: nn.Module) -> None:
    """Take `default` out of the base weights again, rounded once: in 16 bit some weights end a last bit beside where
    they were. Raises UserError if it is not folded."""
    if not is_folded(transformer):
        raise UserError(f"adapter {DEFAULT!r} is not folded into the base weights; there is nothing to unfold")
    for name, layer in _layers_of_default(transformer):
        _check_foldable(name, layer)
    for _, layer in _layers_of_default(transformer):
        _add(layer, -layer.folded.pop(DEFAULT))
    transformer.register_to_config(**{FOLDED_KEY: None})


def is_folded(transformer: nn.Module) -> bool:
    """Whether `default`, which is loaded, is in the base weights."""
    return any(getattr(layer, "folded", None) for _, layer in _layers_of_default(transformer))


def refuse_folded(transformer: nn.Module, what: str) -> None:
    """`UserError` that starts with `what` if the base weights contain an adapter, loaded or not."""
    if is_folded(transformer) or transformer.config.get(FOLDED_KEY) is not None:
        raise UserError(
            f"{what}: the model has an adapter folded into its weights already; unfold it, or use the model that "
            "the adapter was trained on"
        )


def folded_scale(transformer: nn.Module) -> float:
    """The one factor of `default` in all base weights. Raises UserError if layers were folded with different ones."""
    scales = {layer.folded[DEFAULT] for _, layer in _layers_of_default(transformer)}
    if len(scales) != 1:
        raise UserError(f"adapter {DEFAULT!r} was folded with other weights in some blocks; fold it with one weight")
    return scales.pop()


def mark_folded(transformer: nn.Module, scale: float) -> None:
    """Say that the base weights contain scale x B A of the loaded `default`, which keeps acting with that scale."""
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
            f"{name} is quantised ({kind}), and its steps are coarser than the adapter: fold before quantising, "
            "or leave the adapter unfolded"
        )
    if weight.is_meta:
        raise UserError(f"the weights of {name} are offloaded; fold first, then turn offloading on")


@torch.no_grad()
def _add(layer: LoraLayer, scale: float) -> None:
    """W += scale x B A in float32, rounded once; in place, because offloading and shared weights hold on to it."""
    down, up, base = layer.lora_A[DEFAULT], layer.lora_B[DEFAULT], layer.base_layer
    delta = up.weight.float().to(base.weight.device) @ down.weight.float().to(base.weight.device)
    base.weight.copy_(base.weight.float().add_(delta, alpha=scale))
