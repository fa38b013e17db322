"""Set up the processes that accelerate's launcher has started."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    ProjectConfiguration,
)

from seg2any.system.device import make_current
from seg2any.system.errors import UserError
from seg2any.system.precision import has_fast_bfloat16
from seg2any.system.processes import Process
from seg2any.training.config import Config

# Adapters in parts could be trained, since every layer is called as a module, but not averaged or written.
SPLITS_ADAPTERS = "leaves each process a part of every parameter, but checkpoints and the average need whole adapters"
INSTEAD = "use DDP (config/accelerate.yaml); with trainer.shard_base=true it shards the frozen weights"


def make_accelerator(config: Config) -> Accelerator:
    """Set up the launcher's processes with this run's accumulation, clipping and trackers.

    accelerate's own bf16 stays off, since DeepSpeed would turn the adapters into bf16, too. Its fp16 only scales the
    loss. The network computes in the precision of the frozen weights.
    """
    for kind in ("FSDP", "MEGATRON_LM"):  # refused here: on a CPU accelerate would silently train by DDP instead
        if os.environ.get(f"ACCELERATE_USE_{kind}") == "true":
            raise UserError(f"launcher: {kind} {SPLITS_ADAPTERS}; {INSTEAD}")
    folder = Path(config.project.output_dir)
    accelerator = Accelerator(
        cpu=_is_ddp_on_cpu(),
        mixed_precision="fp16" if config.mixed_precision == "fp16" else "no",
        gradient_accumulation_steps=config.trainer.gradient_accumulation_steps,
        log_with=config.project.report_to,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / config.project.logging_dir)),
        kwargs_handlers=_handlers(),
    )
    make_current(accelerator.device)  # accelerate does so for torchrun's ranks, not for ACCELERATE_TORCH_DEVICE
    if config.mixed_precision == "bf16" and not has_fast_bfloat16(accelerator.device):
        on_cpu = accelerator.device.type == "cpu"
        slow = "CPU emulates bf16, many times slower than fp32; give auto" if on_cpu else "GPU emulates bf16; give fp16"
        warnings.warn(f"mixed_precision: this {slow}", stacklevel=2)
    return accelerator


def _is_deepspeed_launch() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def _is_ddp_on_cpu() -> bool:
    """Tell whether accelerate needs `cpu=True`.

    Without it, each process would silently train alone.
    """
    has_others = Process.of(os.environ).count > 1
    return has_others and not torch.accelerator.is_available() and not _is_deepspeed_launch()


def _handlers() -> list[KwargsHandler]:
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        AutocastKwargs(enabled=False),
    ]
    if _is_deepspeed_launch() and not torch.accelerator.is_available():
        from deepspeed.ops import __compatible_ops__

        handlers.append(InitProcessGroupKwargs(backend="gloo"))  # else each process would silently train alone
        __compatible_ops__["deepspeed_shm_comm"] = False  # else DeepSpeed compiles its own backend first, for minutes
    return handlers
