"""Compute regional attention with interchangeable backends, each tested against `dense`.

name     memory for the pattern    computation
dense    L x L, float32            the formula in float32, the oracle of all others
sdpa     one mask for all blocks   torch's fused kernel with a mask that all heads share
matmul   one mask for all blocks   the formula in the model's precision, head by head; quick on some CPUs with bfloat16
grouped  O(L) for every class      one kernel call without a mask for each class of tokens with equal rows
flex     (L / 128)^2               a kernel that skips blocks of tokens that do not see each other; trains on CUDA only
auto     that of its choice        sdpa, matmul or grouped, chosen for each block by `choice.choose`

A mask of more than 256 MiB is built slice by slice, in every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from seg2any.attention.choice import choose
from seg2any.attention.flex import flex
from seg2any.attention.grouped import grouped
from seg2any.attention.kernels import (
    Kernel,
    fused,
    heads_first,
    kernel_dtype,
    masked,
    products,
    quickest,
    without_cudnn,
)
from seg2any.attention.names import check_backend
from seg2any.attention.pattern import AttentionPattern, TokenClasses
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionPattern], torch.Tensor]
# Called before the attention of every block with (block, query, key, pattern): query [B, queries, heads, d] and key
# [B, L, heads, d] after RoPE. `attention_weights` computes the weights of any queries, with their rows of the pattern.
Tap = Callable[[int, torch.Tensor, torch.Tensor, AttentionPattern | None], None]


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask) in float32.

    query [B, Lq, heads, d], key [B, Lk, heads, d], mask broadcastable to the result -> [B, heads, Lq, Lk]
    """
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask.float()).softmax(-1)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute the textbook formula in float32, without autocast: the oracle of the others."""
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_weights(query, key, pattern.mask(device=query.device))
        return torch.einsum("bhqk,bkhd->bqhd", weights, value.float()).to(value.dtype)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Run torch's fused kernel with a mask."""
    return _masked(query, key, value, pattern, fused)


def matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute the formula in the model's precision, by matrix products with a mask."""
    return _masked(query, key, value, pattern, products)


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern, kernel: Kernel
) -> torch.Tensor:
    dtype = kernel_dtype(query)
    query, key, value = (heads_first(x, dtype) for x in (query, key, value))
    return masked(query, key, value, pattern, kernel).transpose(1, 2)


def auto(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Run the backend that `choose` expects to be quickest."""
    return BACKENDS[choose(query, key, value, pattern)](query, key, value, pattern)


BACKENDS: dict[str, Backend] = {
    "auto": auto,
    "sdpa": sdpa,
    "grouped": grouped,
    "flex": flex,
    "matmul": matmul,
    "dense": dense,
}


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: AttentionPattern | None = None,
    attention_backend: str = "auto",
) -> torch.Tensor:
    """Compute attention in which every query sees the keys that the pattern allows.

    query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d]; pattern None = every query
    sees every key. Raises UserError for a backend that would lose the regions, or cannot run this pattern.
    """
    if attention_backend not in BACKENDS:
        check_backend(attention_backend)
    if pattern is None or pattern.is_full:
        dtype = kernel_dtype(query)
        query, key, value = (heads_first(x, dtype) for x in (query, key, value))
        return quickest(query)(query, key, value, None).transpose(1, 2)
    with without_cudnn(query.device):
        return BACKENDS[attention_backend](query, key, value, pattern)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Tokens and settings of a batch, with the pattern of every block.

    Blocks share at most two patterns, because settings use at most two kinds of `Attention`.
    """

    tokens: TokenLayout
    settings: ConditionSettings
    _patterns: dict[Attention, AttentionPattern] = field(default_factory=dict, repr=False)

    @cached_property
    def classes(self) -> TokenClasses:
        """The token classes, which the patterns of all blocks share."""
        return TokenClasses.of(self.tokens)

    def pattern(self, block: int) -> AttentionPattern:
        """Return the pattern of a block, counted from 0 over double then single blocks."""
        attention = self.settings.attention_of(block)
        if attention not in self._patterns:
            self._patterns[attention] = AttentionPattern(self.tokens, self.classes, attention, self.settings)
        return self._patterns[attention]

    def mask(self, block: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        """Return the additive mask [B, 1, L, L] of a block; None if every token sees every token."""
        pattern = self.pattern(block)
        return None if pattern.is_full else pattern.mask(dtype)

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute the attention of one block.

        query [B, queries, heads, d] of the first or all tokens, key and value [B, L, heads, d]
        -> [B, queries, heads, d]
        """
        pattern = self.pattern(block).with_queries(query.shape[1])
        return attend(query, key, value, pattern, self.settings.attention_backend)
