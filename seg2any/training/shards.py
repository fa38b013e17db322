"""The frozen base in parts: every process keeps one of each block, and gathers a block to compute with it (FSDP2).

Adapters stay whole on every process and get the gradients that DDP would give them, so that their average, optimizer
and checkpoints are what they are without shards. What is gained is the memory of frozen weights: FLUX.1's 24 GB become
6 on each of 4 GPUs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from seg2any.system.errors import UserError
from seg2any.training.config import Config


def is_sharded(config: Config, accelerator: Accelerator) -> bool:
    """Whether to shard; one process keeps everything. Raises UserError for what does not go with shards."""
    trainer = config.trainer
    if not trainer.shard_base or accelerator.num_processes == 1:
        return False
    if not accelerator.distributed_type.value.startswith("MULTI_"):
        raise UserError("trainer.shard_base: goes with DDP, not with DeepSpeed; launch with config/accelerate.yaml")
    if trainer.base_quantization != "none":
        raise UserError(
            "trainer.shard_base: quantised weights cannot be sharded; set trainer.base_quantization to none"
        )
    if trainer.compile:
        raise UserError("trainer.shard_base: does not go with trainer.compile; set one of them to false")
    return True


def shard_frozen(transformer: nn.Module, device: torch.device) -> None:
    """Every process calls it, with the same weights on any device; afterwards its part is on `device`.

    From then on every forward pass waits for the other processes: all have to make equally many.
    """
    # Nothing here works in place on what a block returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    adapters = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for parameter in adapters:
        parameter.data = parameter.data.to(device)
    for module in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(module, mesh=mesh, ignored_params=adapters)


def average_gradients(adapters: Iterable[nn.Parameter]) -> None:
    """What DDP does during the backward pass, after it: at the same time as FSDP's, the processes would start their
    collectives in different orders and mix them up."""
    processes, reductions = torch.distributed.get_world_size(), []
    for parameter in adapters:
        parameter.grad /= processes
        reductions.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
    for reduction in reductions:
        reduction.wait()
