"""The frozen transformer in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import torch
from diffusers import PipelineQuantizationConfig

from seg2any import memory

MODES = {"8bit": "int8", "nf4": "nf4"}  # trainer.base_quantization -> memory mode


def quantization_config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig | None:
    """For `from_pretrained`; `kind` is trainer.base_quantization. Matrix products are computed in `dtype`."""
    if kind == "none":
        return None
    memory.check_bitsandbytes(f"trainer.base_quantization: {kind}", memory.best_device(), "none")
    return memory.quantization_config(MODES[kind], dtype)
