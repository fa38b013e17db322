"""Check published adapter keys, shapes and sizes at full size, on the meta device."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft.utils import get_peft_model_state_dict

from seg2any.adapters.files import COND, DEFAULT, PREFIX, add_adapters
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel


def check(file: Path) -> None:
    recorded = json.loads(file.read_text())
    with torch.device("meta"):
        model = Seg2AnyTransformer2DModel(guidance_embeds=True)  # the other defaults are FLUX.1-dev's
        assert sum(parameter.numel() for parameter in model.parameters()) == recorded["base_params"]
        add_adapters(model, recorded["rank"])
    for name in (DEFAULT, COND):
        weights = get_peft_model_state_dict(model, adapter_name=name)
        shapes = {PREFIX + key: list(value.shape) for key, value in weights.items()}
        assert shapes == recorded["keys"][name]
        assert len(shapes) == recorded["num_keys"][name]
        assert sum(value.numel() for value in weights.values()) == recorded["num_params"][name]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == recorded["trainable_lora_params"]


def cases(root: Path) -> dict[str, Callable[[], None]]:
    return {f"lora_keys/{file.stem}": partial(check, file) for file in sorted((root / "lora_keys").glob("*.json"))}
