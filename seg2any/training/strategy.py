"""Spread a run over processes: one, DDP, DeepSpeed ZeRO, or DDP over a sharded base.

accelerate's launcher decides, and training gives the same numbers in each.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
)
from diffusers import DiffusionPipeline
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from seg2any.system.errors import UserError
from seg2any.system.precision import dtype_of, has_fast_bfloat16
from seg2any.system.processes import ALONE, Process
from seg2any.training.accelerator import INSTEAD, SPLITS_ADAPTERS
from seg2any.training.config import Config


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


def _process_of(accelerator: Accelerator) -> Process:
    local_count = Process.of(os.environ).local_count
    local = accelerator.local_process_index
    return Process(accelerator.process_index, accelerator.num_processes, local, local_count)


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
