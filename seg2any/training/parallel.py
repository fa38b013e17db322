"""One process, DDP or DeepSpeed ZeRO: accelerate's launcher decides, and training gives the same numbers in each."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    KwargsHandler,
    ProjectConfiguration,
)

from seg2any.system.errors import UserError
from seg2any.system.precision import has_fast_bfloat16
from seg2any.system.processes import Process
from seg2any.training.config import Config

# Not the routing of adapters, which calls every layer as a module, but what is done to them between steps.
WHOLE_PARAMETERS = "leaves each process a part of every parameter, and checkpoints and the average need whole adapters"
INSTEAD = "use DDP (config/accelerate.yaml); trainer.shard_base=true leaves it a part of the frozen weights"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(config: Config) -> Accelerator:
    """What the launcher has set up, with this run's accumulation, clipping and trackers.

    accelerate's own bf16 stays off: DeepSpeed would turn the adapters into bf16, too. `Velocity` lowers precision.
    """
    for kind in ("FSDP", "MEGATRON_LM"):  # asked here, since on a CPU accelerate would train by DDP instead, silently
        if os.environ.get(f"ACCELERATE_USE_{kind}") == "true":
            raise UserError(f"launcher: {kind} {WHOLE_PARAMETERS}; {INSTEAD}")
    folder = Path(config.project.output_dir)
    accelerator = Accelerator(
        cpu=_is_ddp_on_cpu(),
        mixed_precision="fp16" if config.mixed_precision == "fp16" else "no",
        gradient_accumulation_steps=config.trainer.gradient_accumulation_steps,
        log_with=config.project.report_to,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / config.project.logging_dir)),
        kwargs_handlers=_handlers(),
    )
    if config.mixed_precision == "bf16" and not has_fast_bfloat16(accelerator.device):
        warnings.warn("mixed_precision: this CPU computes bf16 many times slower than fp32; give auto", stacklevel=2)
    if is_deepspeed(accelerator):
        _configure_deepspeed(accelerator.deepspeed_plugin.deepspeed_config, config)
    return accelerator


def _is_deepspeed_launch() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def _is_ddp_on_cpu() -> bool:
    """accelerate has to be told, else each process would train alone, silently."""
    has_others = Process.of(os.environ).count > 1
    return has_others and not torch.accelerator.is_available() and not _is_deepspeed_launch()


def _handlers() -> list[KwargsHandler]:
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    if _is_deepspeed_launch() and not torch.accelerator.is_available():
        from deepspeed.ops import __compatible_ops__

        handlers.append(InitProcessGroupKwargs(backend="gloo"))  # else each process would train alone, silently
        __compatible_ops__["deepspeed_shm_comm"] = False  # else it would compile its own backend first, for minutes
    return handlers


def process_of(accelerator: Accelerator) -> Process:
    """Return which process of the run this is, as accelerate has set it up."""
    launched = Process.of(os.environ)
    local = accelerator.local_process_index
    return Process(accelerator.process_index, accelerator.num_processes, local, launched.local_count)


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the step."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def _configure_deepspeed(deepspeed: dict, config: Config) -> None:
    """Our config decides; the launcher's file only says which stage and which buckets."""
    zero = deepspeed["zero_optimization"]
    if zero["stage"] not in (1, 2):
        reason = f"{WHOLE_PARAMETERS}; {INSTEAD}, or" if zero["stage"] == 3 else "is not supported;"
        raise UserError(f"launcher: DeepSpeed ZeRO stage {zero['stage']} {reason} use config/deepspeed_stage2.yaml")
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        raise UserError("launcher: DeepSpeed's offload_optimizer_device is not supported; set it to none")
    if config.mixed_precision == "fp16":
        raise UserError("mixed_precision: fp16 does not go with DeepSpeed here; use bf16")
    if config.trainer.optimizer != "adamw":
        raise UserError(f"trainer.optimizer: {config.trainer.optimizer} cannot be sharded by DeepSpeed; use adamw")
    deepspeed["train_micro_batch_size_per_gpu"] = config.trainer.train_batch_size
    deepspeed["gradient_accumulation_steps"] = config.trainer.gradient_accumulation_steps
    deepspeed["gradient_clipping"] = config.optimizer.max_grad_norm


def precision(config: Config, device: torch.device) -> str:
    """no, fp16 or bf16: what `mixed_precision` means on this device."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if has_fast_bfloat16(device) else "no"


def weight_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Of frozen weights, and of what autocast lowers; what is trained stays in fp32."""
    return DTYPES[precision(config, device)]
