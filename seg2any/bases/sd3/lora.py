"""Load the published `lora_weights.pth` of Seg4Diff into SD3's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from seg2any.system.errors import UserError, brief
from seg2any.system.pickled import load_pickled

BEFORE, NAMED = "backbone.transformer.", ".default."  # what the published training put into the names
ADAPTER = "masks"


def read_lora(path: Path) -> dict[str, Tensor]:
    """Read the file without running anything that it may hold. Raises UserError if it holds more than tensors."""
    try:
        found = load_pickled(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as tensors only ({brief(error)}); copy the published file") from None
    weights = found.get("model", found) if isinstance(found, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(one, Tensor) for one in weights.values()):
        raise UserError(f"{path}: holds no tensors by name; give the published lora_weights.pth")
    return dict(weights)


def clean_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the LoRA's tensors under peft's names; others, such as those of the published head, are left out."""
    return {
        name.removeprefix(BEFORE).replace(NAMED, "."): tensor
        for name, tensor in weights.items()
        if ".lora_A." in name or ".lora_B." in name
    }


def load_lora(transformer: SD3Transformer2DModel, path: Path) -> int:
    """Load the file as the adapter `masks`, scaled by 1 (alpha = rank); return how many layers it adapts.

    Raises UserError for a file without LoRA tensors, and for layers that the transformer lacks.
    """
    weights = clean_names(read_lora(path))
    layers = {name.rsplit(".lora_", 1)[0] for name in weights}
    if not layers:
        raise UserError(f"{path}: holds no LoRA tensor; give the published lora_weights.pth")
    known = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    if unknown := sorted(layers - known):
        raise UserError(f"{path}: adapts {unknown[0]}, which this model lacks; give the model that it was trained on")
    for layer in layers:
        ends = [weights.get(f"{layer}.lora_{end}.weight") for end in "AB"]
        size = transformer.get_submodule(layer)
        if any(one is None or one.ndim != 2 for one in ends):
            raise UserError(f"{path}: {layer} lacks a half of its LoRA; copy the file again")
        if (ends[0].shape[1], ends[1].shape[0]) != (size.in_features, size.out_features):
            raise UserError(f"{path}: {layer} has another size here; give the model that it was trained on")
    transformer.load_lora_adapter(weights, prefix=None, adapter_name=ADAPTER)
    transformer.set_adapters([ADAPTER])
    return len(layers)
