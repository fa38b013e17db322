"""The frozen transformer in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util

import torch
from diffusers import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import BitsAndBytesConfig

from seg2any.errors import UserError


def quantization_config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig | None:
    """For `from_pretrained`; `kind` is trainer.base_quantization. Matrix products are computed in `dtype`."""
    if kind == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"trainer.base_quantization: {kind} needs bitsandbytes; pip install bitsandbytes, or use none")
    if not torch.accelerator.is_available():
        raise UserError(f"trainer.base_quantization: {kind} needs a GPU, and there is none; use none")
    if kind == "8bit":
        chosen = BitsAndBytesConfig(load_in_8bit=True)
    else:
        chosen = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return PipelineQuantizationConfig(quant_mapping={"transformer": chosen})
