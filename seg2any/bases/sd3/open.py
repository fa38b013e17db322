"""Open a Stable Diffusion 3 pipeline for the attention probe."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from seg2any.bases.sd3.base import Sd3
from seg2any.bases.sd3.lora import load_lora
from seg2any.system.errors import UserError


def open_sd3(
    name: str, lora: Path | None, dtype: torch.dtype, device: torch.device
) -> tuple[Sd3, FlowMatchEulerDiscreteScheduler]:
    """Load a folder or hub id in diffusers' format, without T5, and the published LoRA. Raises UserError."""
    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            name, torch_dtype=dtype, text_encoder_3=None, tokenizer_3=None, use_safetensors=True
        )
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: is no Stable Diffusion 3 pipeline that can be loaded ({reason[:200]})") from None
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    if lora is not None:
        load_lora(pipeline.transformer, lora)
    return Sd3(pipeline.to(device)), pipeline.scheduler
