"""Spread a run over processes: one, DDP, DeepSpeed ZeRO, or DDP over a sharded base.

accelerate's launcher decides, and training gives the same numbers in each.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    KwargsHandler,
    ProjectConfiguration,
)
from diffusers import DiffusionPipeline
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from seg2any.system.device import make_current
from seg2any.system.errors import UserError
from seg2any.system.interrupts import STOPPING
from seg2any.system.precision import dtype_of, has_fast_bfloat16
from seg2any.system.processes import ALONE, Process
from seg2any.training.config import Config

SAME_EVENT_SECONDS = 3.0  # a launcher needs milliseconds, also for many processes on busy cores
# Adapters in parts could be trained, since every layer is called as a module, but not averaged or written.
SPLITS_ADAPTERS = "leaves each process a part of every parameter, but checkpoints and the average need whole adapters"
INSTEAD = "use DDP (config/accelerate.yaml); with trainer.shard_base=true it shards the frozen weights"


class Strategy:
    """One process, or DDP: each holds the whole network and trains on its part of a batch.

    precision  no, fp16 or bf16: what mixed_precision means on this device
    """

    optimizer_is_sharded = False  # True: all processes have to ask for the optimizer's state at the same time

    def __init__(self, accelerator: Accelerator, precision: str):
        self.accelerator, self.precision = accelerator, precision
        self.device = accelerator.device
        self.process = _process_of(accelerator)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights, in which the network computes; trained parameters stay in fp32."""
        return dtype_of("fp32" if self.precision == "no" else self.precision)

    @property
    def validation_process(self) -> Process:
        """The process whose share of the validation samples is measured here."""
        return self.process

    def place(self, pipeline: DiffusionPipeline) -> None:
        """Move the frozen networks to the device, before adapters are attached."""
        pipeline.to(self.device)

    def split(self, transformer: nn.Module) -> None:
        """Shard the frozen weights, after adapters are attached; only `ShardedBase` does so."""

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap both for the launcher. Neither is moved: quantised weights could not be."""
        return self.accelerator.prepare(network, optimizer, device_placement=[False, False])

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes after the backward pass; DDP has done so during it."""


class DeepSpeed(Strategy):
    """ZeRO stage 1 or 2: every process keeps its share of the gradients and of AdamW's moments."""

    optimizer_is_sharded = True

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap both; DeepSpeed moves them itself."""
        return self.accelerator.prepare(network, optimizer)


class ShardedBase(Strategy):
    """DDP, with the frozen weights sharded by FSDP2: blocks are gathered to compute them.

    Adapters stay whole on every process and get the gradients that DDP would give them, so their average, optimizer and
    checkpoints are those of DDP. This saves memory of frozen weights: FLUX.1's 24 GB become 6 on each of 4 GPUs.
    Every forward pass waits for the other processes, so all have to make equally many.
    """

    @property
    def validation_process(self) -> Process:
        """A lone process: with shares of different size, some processes would wait for ever."""
        return ALONE

    def place(self, pipeline: DiffusionPipeline) -> None:
        """Move all but the transformer, which stays where it is until `split`."""
        for module in pipeline.components.values():
            if isinstance(module, nn.Module) and module is not pipeline.transformer:
                module.to(self.device)

    def split(self, transformer: nn.Module) -> None:
        """Move adapters and this process's part of the frozen weights to the device."""
        # Nothing here works in place on a block's output.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (self.process.count,))
        adapters = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
        for parameter in adapters:
            parameter.data = parameter.data.to(self.device)
        for module in (*transformer.blocks, transformer):
            # The process that saves would shard a root left whole by validation, and gather it alone in the next pass.
            fully_shard(module, mesh=mesh, ignored_params=adapters, reshard_after_forward=True)

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap the optimizer only: DDP's wrapper would average during FSDP's collectives."""
        return network, self.accelerator.prepare(optimizer, device_placement=[False])

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average after the backward pass.

        During it, processes would start the collectives of DDP and of FSDP in different orders and mix them up.
        """
        reductions = []
        for parameter in parameters:
            parameter.grad /= self.process.count
            reductions.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for reduction in reductions:
            reduction.wait()


def make_strategy(config: Config, accelerator: Accelerator) -> Strategy:
    """Choose the strategy that the launcher of `accelerator` and trainer.shard_base ask for.

    Raises UserError for what cannot be.
    """
    # A launcher's own number in the environment would go before the config's.
    accelerator.gradient_accumulation_steps = config.trainer.gradient_accumulation_steps
    kind = ShardedBase if shards_base(config, accelerator) else Strategy
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        kind = DeepSpeed
        _configure_deepspeed(accelerator.deepspeed_plugin.deepspeed_config, config)
    return kind(accelerator, _precision(config, accelerator.device))


def shards_base(config: Config, accelerator: Accelerator) -> bool:
    """Tell whether to shard the base; a single process keeps it whole.

    Raises UserError for options that exclude it.
    """
    trainer = config.trainer
    if not trainer.shard_base or accelerator.num_processes == 1:
        return False
    if not accelerator.distributed_type.value.startswith("MULTI_"):
        raise UserError("trainer.shard_base: needs DDP, not DeepSpeed; launch with config/accelerate.yaml")
    if trainer.base_quantization != "none":
        raise UserError("trainer.shard_base: cannot shard quantised weights; set trainer.base_quantization to none")
    if trainer.compile:
        raise UserError("trainer.shard_base: does not work with trainer.compile; set one of them to false")
    return True


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


def _process_of(accelerator: Accelerator) -> Process:
    local_count = Process.of(os.environ).local_count
    local = accelerator.local_process_index
    return Process(accelerator.process_index, accelerator.num_processes, local, local_count)


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


def _configure_deepspeed(deepspeed: dict, config: Config) -> None:
    """Copy the config's numbers into DeepSpeed's.

    The launcher's file decides only stage and buckets.
    """
    zero = deepspeed["zero_optimization"]
    if zero["stage"] not in (1, 2):
        reason = f"{SPLITS_ADAPTERS}; {INSTEAD}, or" if zero["stage"] == 3 else "is not supported;"
        raise UserError(f"launcher: DeepSpeed ZeRO stage {zero['stage']} {reason} use config/deepspeed_stage2.yaml")
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        raise UserError("launcher: DeepSpeed's offload_optimizer_device is not supported; set it to none")
    if config.mixed_precision == "fp16":
        raise UserError("mixed_precision: fp16 is not supported under DeepSpeed; use bf16")
    if config.trainer.optimizer != "adamw":
        raise UserError(f"trainer.optimizer: DeepSpeed cannot shard {config.trainer.optimizer}; use adamw")
    deepspeed["train_micro_batch_size_per_gpu"] = config.trainer.train_batch_size
    deepspeed["gradient_accumulation_steps"] = config.trainer.gradient_accumulation_steps
    deepspeed["gradient_clipping"] = config.optimizer.max_grad_norm


def _precision(config: Config, device: torch.device) -> str:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if has_fast_bfloat16(device) else "no"


class Interrupt:
    """Inside this context the first signal of STOPPING is only remembered; the second ends the process at once.

    SIGINT and SIGHUP stay ignored where they are, as in background jobs and under nohup. A launcher may pass on a
    signal that its processes have got from the terminal or from Slurm, too: to one of several processes, signals
    within SAME_EVENT_SECONDS are one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._patience = SAME_EVENT_SECONDS if accelerator.num_processes > 1 else 0.0
        self._previous: dict[signal.Signals, object] = {}
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._requested = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in STOPPING:
                if number in (signal.SIGINT, signal.SIGHUP) and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since > self._patience:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self._patience:  # the kernel acts even if this process hangs in C code
            for one in self._previous:
                signal.signal(one, signal.SIG_DFL)

    def requested(self) -> bool:
        """Tell whether any process got a signal.

        Every process must ask at the same moments, and all get one answer.
        """
        if self._signal is not None:
            self.accelerator.set_trigger()
        self._requested = self.accelerator.check_trigger() or self._requested
        return self._requested

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that stopped the run, SIGTERM if only another process got it.

        None while nothing is requested.
        """
        return (self._signal or signal.SIGTERM) if self._requested else None
