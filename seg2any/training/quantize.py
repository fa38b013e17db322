"""The frozen transformer in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import torch
from diffusers import PipelineQuantizationConfig
from torch import nn

from seg2any.generate import memory
from seg2any.system.precision import best_device

MODES = {"8bit": "int8", "nf4": "nf4"}  # trainer.base_quantization -> memory mode


def quantization_config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig | None:
    """For `from_pretrained`; `kind` is trainer.base_quantization. Matrix products are computed in `dtype`."""
    if kind == "none":
        return None
    memory.check_bitsandbytes(f"trainer.base_quantization: {kind}", best_device(), "none")
    return memory.quantization_config(MODES[kind], dtype)


def follow_autocast(network: nn.Module) -> None:
    """Let quantised layers answer in autocast's precision, as torch's own do.

    bitsandbytes' answer in the dtype of what they are given: in fp32 from the first layer on, and so would be all that
    is kept for the backward pass.
    """
    for module in network.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.register_forward_pre_hook(_lower)


def _lower(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    device = inputs[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
    return (inputs[0].to(dtype), *inputs[1:])
