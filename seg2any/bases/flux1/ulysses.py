"""One image on several GPUs: the Ulysses attention of diffusers (arXiv 2309.14509), with our masks.

Every process has a share of the text, the image and the condition rows. In attention they exchange rows for heads: each
sees all tokens, for its part of the heads, in the order of the processes. So who sees whom is asked of token ids that
were put into that order, and backends need not know.
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
    """The processes that make an image together, each with all weights. All call the transformer with equal inputs
    and get equal outputs."""

    def __init__(self, config: Any, n_heads: int, device: torch.device):
        """config: `ContextParallelConfig(ulysses_degree=n)` of diffusers; `torch.distributed` runs n processes, or a
        multiple: then ranks 0 to n - 1 make one image, the next n another.

        Raises UserError for other kinds of parallelism, and where heads or processes do not suffice.
        """
        self.config = config if isinstance(config, ParallelConfig) else ParallelConfig(context_parallel_config=config)
        chosen = self.config.context_parallel_config
        if not isinstance(chosen, ContextParallelConfig):
            raise UserError("enable_parallelism: tensor parallelism cuts the weights that adapters are routed by")
        if chosen.ring_degree != 1 or chosen.ulysses_anything or chosen.ulysses_degree < 2:
            raise UserError(
                "enable_parallelism: ring attention has no masks; give ContextParallelConfig(ulysses_degree=n)"
            )
        self.size = chosen.ulysses_degree
        if n_heads % self.size:
            raise UserError(f"ulysses_degree is {self.size}, and {n_heads} heads cannot be shared evenly; use another")
        if not dist.is_initialized():
            raise UserError("enable_parallelism: call torch.distributed.init_process_group first, under torchrun")
        processes = dist.get_world_size()
        if processes % self.size:
            raise UserError(f"ulysses_degree is {self.size}, of {processes} processes; start as many")
        shape, names = (processes // self.size, *chosen.mesh_shape), ("images", *chosen.mesh_dim_names)
        mesh = chosen.mesh or init_device_mesh(device.type, shape, mesh_dim_names=names)
        self.config.setup(dist.get_rank(), processes, device, mesh=mesh)
        self.group = chosen._ulysses_mesh.get_group()
        self.rank = dist.get_rank(self.group)
        self._shares: weakref.WeakKeyDictionary[Condition, Condition] = weakref.WeakKeyDictionary()

    def check(
        self, transformer: FluxTransformer2DModel, x: torch.Tensor, condition: Condition, tap: Tap | None
    ) -> None:
        """Raise UserError for what cannot be shared. x: image tokens [B, I, channels]."""
        reasons = {
            "training": torch.is_grad_enabled(),
            "a step cache: each process would skip other steps": transformer.is_cache_enabled,
            "method 'place': its weights belong to places": condition.settings.attention_mask_method == "place",
            "a tap": tap is not None,
            f"{x.shape[1]} image tokens: {self.size} processes cannot share them evenly": x.shape[1] % self.size,
        }
        if found := [reason for reason, applies in reasons.items() if applies]:
            raise UserError(f"context parallelism does not go with {found[0]}; use one GPU, or change that")

    def share(self, x: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, Condition]:
        """Return this process's image tokens [B, I / processes, channels] and its part of the condition."""
        if condition not in self._shares:
            self._shares[condition] = self._share(condition)
        return x.chunk(self.size, 1)[self.rank], self._shares[condition].to(x.device, x.dtype)

    def gather(self, prediction: torch.Tensor) -> torch.Tensor:
        """Join the parts of all processes: [B, I / processes, channels] -> [B, I, channels]."""
        parts = [torch.empty_like(prediction) for _ in range(self.size)]
        dist.all_gather(parts, prediction.contiguous(), group=self.group)
        return torch.cat(parts, 1)

    def _share(self, condition: Condition) -> Condition:
        """Cut this process's part out of a condition; its exchange knows who sees whom among all tokens."""
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
    """Attention of a block over all tokens, for a process's part of the heads.

    plan: of all tokens, in the order of the processes
    """

    plan: AttentionPlan
    config: ParallelConfig

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[B, a process's tokens, heads, d] each -> the same shape. All processes call it."""

        def of_all(_, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__, **___) -> torch.Tensor:
            return self.plan.attend(block, query, key, value)

        nothing = (None, 0.0, False, None, False, False)  # mask, dropout, causal, scale, grouped queries, statistics
        return TemplatedUlyssesAttention.apply(query, key, value, *nothing, of_all, None, self.config)


def _shares(streams: Sequence[torch.Tensor], size: int, padding: Sequence[int]) -> list[torch.Tensor]:
    """Streams [B, n, ..] of tokens, each padded to `size` equal parts -> the parts of each process, joined."""
    parts = []
    for x, value in zip(streams, padding, strict=True):
        x = torch.cat([x, x.new_full((len(x), -x.shape[1] % size, *x.shape[2:]), value)], 1)
        parts.append(x.unflatten(1, (size, x.shape[1] // size)).unbind(1))
    return [torch.cat(own, 1) for own in zip(*parts, strict=True)]
