"""Put a pipeline into a memory mode: which weights are quantised and which wait on the CPU."""

from __future__ import annotations

import importlib.util
import logging

import psutil
import torch
from diffusers import DiffusionPipeline, ModelMixin, PipelineQuantizationConfig
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.quantizers.quantization_config import BitsAndBytesConfig
from torch import nn

from seg2any.generate.memory_estimate import GIB, activation_bytes
from seg2any.generate.memory_modes import BITSANDBYTES, MEMORY_MODES, SMALLER
from seg2any.system.errors import UserError

FP8 = torch.float8_e4m3fn
logger = logging.getLogger(__name__)


def check_mode(mode: str, device: torch.device, flag: str = "memory") -> None:
    """Raise UserError for an unknown mode and for one that the device does not support."""
    if mode not in MEMORY_MODES:
        raise UserError(f"{flag} is {mode!r}; use one of {', '.join(MEMORY_MODES)}")
    if mode in ("offload", "group_offload") and device.type == "cpu":
        raise UserError(f"{flag} {mode}: moves weights between a GPU and the CPU, and the device is {device}; use full")
    if mode in BITSANDBYTES:
        check_bitsandbytes(f"{flag} {mode}", device, "full")
    if mode == "fp8" and device.type == "mps":
        raise UserError(f"{flag} fp8: this device has no 8-bit floats; use full or offload")


def next_mode(mode: str, device: torch.device) -> str | None:
    """Return a mode that needs less memory, or None."""
    if device.type == "cpu":
        return "fp8" if mode == "full" else None
    return SMALLER.get(mode)


def check_bitsandbytes(what: str, device: torch.device, instead: str) -> None:
    """Raise UserError, naming `what`, if networks cannot be quantised on this machine."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs bitsandbytes; pip install bitsandbytes, or use {instead}")
    if device.type == "cpu":
        raise UserError(f"{what} needs a GPU, and there is none; use {instead}")


def quantization_config(mode: str, dtype: torch.dtype) -> PipelineQuantizationConfig:
    """Build the option of `from_pretrained` for int8 or nf4 weights that compute in `dtype`."""
    if mode == "int8":
        # Its kernel rounds to fp16, which FLUX overflows; columns with outliers, numbers above 6, are left in `dtype`.
        chosen = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    else:
        chosen = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return PipelineQuantizationConfig(quant_mapping={"transformer": chosen})


def place(pipe: DiffusionPipeline, mode: str, device: torch.device) -> None:
    """Move and store a loaded pipeline as its mode says; another mode needs a new load."""
    if mode == "full":
        pipe.to(device)
        return
    decode_in_parts(pipe)
    if mode == "fp8":
        kept = (*DEFAULT_SKIP_MODULES_PATTERN, "lora_")
        dtype = pipe.transformer.dtype
        pipe.transformer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=dtype, skip_modules_pattern=kept)
    if mode == "group_offload":
        streams = _streams(pipe) if device.type == "cuda" else {}  # the only device with streams
        pipe.enable_group_offload(device, offload_type="leaf_level", **streams)
    elif device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)


def _streams(pipe: DiffusionPipeline) -> dict[str, bool]:
    """Choose how group offloading copies layers beside the computation; log what it takes.

    Copies of all weights in pinned memory are quickest. Where they do not fit, each layer is pinned when it is needed.
    """
    needed, free = pinned_bytes(pipe), psutil.virtual_memory().available
    pinned = f"memory group_offload: copies of all weights in pinned host memory take {needed / GIB:.1f} GiB"
    if needed <= free:
        logger.info(pinned)
    else:
        logger.info(f"{pinned}, and {free / GIB:.1f} GiB are free; each layer is pinned when it is needed, slower")
    # without record_stream the host would wait for the GPU after every layer
    return {"use_stream": True, "record_stream": True, "low_cpu_mem_usage": needed > free}


def pinned_bytes(pipe: DiffusionPipeline) -> int:
    """Return the host memory of pinned copies of all weights: torch rounds each up to a power of two."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    sizes = (x.numel() * x.element_size() for part in networks for x in (*part.parameters(), *part.buffers()))
    return sum(1 << (size - 1).bit_length() for size in sizes if size)


def decode_in_parts(pipe: DiffusionPipeline) -> None:
    """Let the VAE decode images one by one and, above its training size, in blended tiles."""
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def fits_doubled(transformer: ModelMixin, batch: int, n_tokens: int, device: torch.device) -> bool:
    """Tell whether true CFG should run both passes as one batch.

    True on CUDA, if a batch of twice `batch` images of `n_tokens` tokens is estimated to take at most half of the free
    memory. On a CPU one batch is not faster.
    """
    if device.type != "cuda":
        return False
    width = transformer.dtype.itemsize
    needed = activation_bytes(transformer.config, 2 * batch, n_tokens, width)
    if transformer.device.type == "cpu":  # offloaded: the weights will need memory, too
        needed += sum(p.numel() * p.element_size() for p in transformer.parameters())
    return needed <= free_bytes(device) / 2


def free_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device that this process can still allocate."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
