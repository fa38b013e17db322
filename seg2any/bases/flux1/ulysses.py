"""Generate one image on several GPUs: diffusers' Ulysses attention with our masks.

See arXiv 2309.14509.

Each process holds a share of the text, image and condition rows. For attention the processes exchange rows for heads:
each then has all tokens for its share of the heads, in the order of the processes. The token layout of the attention
plan is put into the same order, so attention backends need not know about processes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxTransformer2DModel
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention_dispatch import TemplatedUlyssesAttention
from torch.distributed.device_mesh import init_device_mesh

from seg2any.attention.attend import AttentionPlan, Tap
from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.bases.base import Condition
from seg2any.system.errors import UserError


class Ulysses:
    """The processes that share an image, each with all weights.

    All of them call `velocity` with equal inputs and get equal outputs.
    """

    def __init__(self, config: Any, n_heads: int, device: torch.device):
        """Join the processes of `torch.distributed` to groups of n: ranks 0 to n - 1, and so on.

        config  `ContextParallelConfig(ulysses_degree=n)` of diffusers

        Raises UserError for other kinds of parallelism, and if n divides neither heads nor processes.
        """
        self.config = config if isinstance(config, ParallelConfig) else ParallelConfig(context_parallel_config=config)
        chosen = self.config.context_parallel_config
        if not isinstance(chosen, ContextParallelConfig):
            raise UserError("enable_parallelism: tensor parallelism splits weights; give a ContextParallelConfig")
        if chosen.ring_degree != 1 or chosen.ulysses_anything or chosen.ulysses_degree < 2:
            raise UserError(
                "enable_parallelism: ring attention takes no mask; give ContextParallelConfig(ulysses_degree=n)"
            )
        self.size = chosen.ulysses_degree
        if n_heads % self.size:
            raise UserError(f"ulysses_degree {self.size} does not divide {n_heads} attention heads; give a divisor")
        if not dist.is_initialized():
            raise UserError("enable_parallelism: call torch.distributed.init_process_group first, under torchrun")
        processes = dist.get_world_size()
        if processes % self.size:
            raise UserError(f"ulysses_degree {self.size} does not divide {processes} processes; launch a multiple")
        shape, names = (processes // self.size, *chosen.mesh_shape), ("images", *chosen.mesh_dim_names)
        mesh = chosen.mesh or init_device_mesh(device.type, shape, mesh_dim_names=names)
        self.config.setup(dist.get_rank(), processes, device, mesh=mesh)
        self.group = chosen._ulysses_mesh.get_group()
        self.rank = dist.get_rank(self.group)
        self._shares: weakref.WeakKeyDictionary[Condition, Condition] = weakref.WeakKeyDictionary()

    def check(
        self, transformer: FluxTransformer2DModel, x: torch.Tensor, condition: Condition, tap: Tap | None
    ) -> None:
        """Raise UserError for a call that processes cannot share. x: image tokens [B, I, channels]."""
        reasons = {
            "training": torch.is_grad_enabled(),
            "a step cache (the processes would skip different steps)": transformer.is_cache_enabled,
            "method place (its weights depend on positions)": condition.settings.attention_mask_method == "place",
            "a tap": tap is not None,
            f"{x.shape[1]} image tokens ({self.size} processes cannot share them evenly)": x.shape[1] % self.size,
        }
        if found := [reason for reason, applies in reasons.items() if applies]:
            raise UserError(f"context parallelism: does not work with {found[0]}; use one GPU, or change that")

    def share(self, x: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, Condition]:
        """Return this process's image tokens [B, I / processes, channels] and condition."""
        if condition not in self._shares:
            self._shares[condition] = self._share(condition)
        return x.chunk(self.size, 1)[self.rank], self._shares[condition].to(x.device, x.dtype)

    def gather(self, prediction: torch.Tensor) -> torch.Tensor:
        """Gather the parts of all processes: [B, I / processes, channels] -> [B, I, channels]."""
        parts = [torch.empty_like(prediction) for _ in range(self.size)]
        dist.all_gather(parts, prediction.contiguous(), group=self.group)
        return torch.cat(parts, 1)

    def _share(self, condition: Condition) -> Condition:
        """Cut out this process's part of a condition; its exchange attends over all tokens."""
        tokens, cond = condition.tokens, condition.cond
        padding = (Kind.TEXT_PAD, Kind.IMAGE, Kind.COND_PAD)
        lengths = (tokens.n_text, tokens.n_image, tokens.n_cond)
        columns = [
            _shares(x.split(lengths, 1), self.size, values)
            for x, values in ((tokens.kind, padding), (tokens.entities, (0, 0, 0)), (tokens.positions, (0, 0, 0)))
        ]
        n_own = [-(-length // self.size) for length in lengths]
        everything = TokenLayout(*(torch.cat(column, 1) for column in columns), *(self.size * n for n in n_own))
        return Condition(
            _shares([condition.text], self.size, [0])[self.rank],
            condition.pooled,
            TokenLayout(*(column[self.rank] for column in columns), *n_own),
            condition.settings,
            None if cond is None else _shares([cond], self.size, [0])[self.rank],
            exchange=Exchange(AttentionPlan(everything, condition.settings), self.config),
        )


@dataclass(frozen=True)
class Exchange:
    """Attention over the tokens of all processes, for this process's share of the heads.

    plan  attention plan of all tokens, in the order of the processes
    """

    plan: AttentionPlan
    config: ParallelConfig

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend for this process's tokens: [B, tokens, heads, d] each -> that shape.

        All processes call it together.
        """

        def of_all(_, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__, **___) -> torch.Tensor:
            return self.plan.attend(block, query, key, value)

        nothing = (None, 0.0, False, None, False, False)  # mask, dropout, causal, scale, grouped queries, statistics
        return TemplatedUlyssesAttention.apply(query, key, value, *nothing, of_all, None, self.config)


def _shares(streams: Sequence[torch.Tensor], size: int, padding: Sequence[int]) -> list[torch.Tensor]:
    """Pad streams [B, n, ..], cut each into `size` equal parts, and join each process's parts."""
    parts = []
    for x, value in zip(streams, padding, strict=True):
        x = torch.cat([x, x.new_full((len(x), -x.shape[1] % size, *x.shape[2:]), value)], 1)
        parts.append(x.unflatten(1, (size, x.shape[1] // size)).unbind(1))
    return [torch.cat(own, 1) for own in zip(*parts, strict=True)]
