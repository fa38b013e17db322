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

FLUX = {"guidance_embeds": True}  # the other defaults of the class are FLUX.1-dev's


def check(file: Path) -> None:
    """Compare keys and shapes, and those numbers that the file holds."""
    recorded = json.loads(file.read_text())
    with torch.device("meta"):
        model = Seg2AnyTransformer2DModel.from_config(recorded.get("config", FLUX))
        ours = {"base_params": sum(parameter.numel() for parameter in model.parameters())}
        add_adapters(model, recorded["rank"])
    ours["trainable_lora_params"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert set(recorded["keys"]) <= {DEFAULT, COND} and recorded["keys"]
    for name, keys in recorded["keys"].items():
        weights = get_peft_model_state_dict(model, adapter_name=name)
        shapes = {PREFIX + key: list(value.shape) for key, value in weights.items()}
        assert (shapes if isinstance(keys, dict) else sorted(shapes)) == (
            keys if isinstance(keys, dict) else sorted(keys)
        )
        ours[f"num_keys {name}"] = len(shapes)
        ours[f"num_params {name}"] = sum(value.numel() for value in weights.values())
    for number, value in ours.items():
        part, *name = number.split()
        if part in recorded:
            assert (recorded[part][name[0]] if name else recorded[part]) == value, number


def cases(root: Path) -> dict[str, Callable[[], None]]:
    return {f"lora_keys/{file.stem}": partial(check, file) for file in sorted((root / "lora_keys").glob("*.json"))}
