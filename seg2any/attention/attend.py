"""Compute regional attention with interchangeable backends, each tested against `dense`.

name     memory for the pattern    computation
dense    L x L, float32            the formula in float32, the oracle of all others
sdpa     512 x L for all heads     torch's fused kernel with a mask, for 512 queries at a time
matmul   512 x L for all heads     the formula in the model's precision, head by head; quick on CPUs with bfloat16;
                                   trains as sdpa above 512 tokens
grouped  O(L) for every class      one kernel call without a mask for each class of tokens with equal rows
flex     (L / 128)^2               a kernel that skips blocks of tokens that do not see each other; trains on CUDA only
auto     that of its choice        sdpa, matmul or grouped, chosen for each block
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from seg2any.attention.flex import flex
from seg2any.attention.grouped import grouped
from seg2any.attention.kernels import (
    in_slices,
    in_slices_with_gradients,
    kernel_dtype,
    prefers_products,
    products,
    products_with_gradients,
    quickest,
    trains,
)
from seg2any.attention.names import check_backend
from seg2any.attention.pattern import AttentionPattern, TokenClasses
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout

logger = logging.getLogger(__name__)

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionPattern], torch.Tensor]
# Called before the attention of every block with (block, query, key, pattern): query [B, queries, heads, d] and key
# [B, L, heads, d] after RoPE. `attention_weights` computes the weights of any queries, with their rows of the pattern.
Tap = Callable[[int, torch.Tensor, torch.Tensor, AttentionPattern | None], None]

# `auto` takes `grouped` instead of a backend with a mask only
FEW_TOKENS = {"sdpa": 2048, "matmul": 1024}  # from this many tokens on: below, kernel calls cost more than pairs
MOST_PAIRS = {"sdpa": 0.7, "matmul": 0.6}  # if it computes at most this share of all L x L pairs
MOST_COPIES = 10  # and copies every key at most this often on average,
MOST_COPIES_IN_TRAINING = 6  # or this often in training, where copies are kept for the backward pass
_announced: set[tuple[object, ...]] = set()


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask) in float32.

    query [B, Lq, heads, d], key [B, Lk, heads, d], mask broadcastable to the result -> [B, heads, Lq, Lk]
    """
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask.float()).softmax(-1)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute the textbook formula in float32, without autocast: the oracle of the others."""
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_weights(query, key, pattern.mask())
        return torch.einsum("bhqk,bkhd->bqhd", weights, value.float()).to(value.dtype)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Run torch's fused kernel over slices of the queries; all heads share one mask."""
    return (in_slices_with_gradients if trains(query, key, value) else in_slices)(query, key, value, pattern)


def matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute the formula in the model's precision.

    On CPUs with bfloat16 matrix units this takes a third of `sdpa`'s time. Training needs the scores of all pairs and
    heads in memory, so beyond one slice of queries it uses `sdpa`.
    """
    if not trains(query, key, value):
        return in_slices(query, key, value, pattern, products)
    if len(pattern.slices) > 1:
        return sdpa(query, key, value, pattern)
    return products_with_gradients(query, key, value, pattern.mask(kernel_dtype(query)))


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
        return quickest(query, key, value)
    return BACKENDS[attention_backend](query, key, value, pattern)


def choose(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> str:
    """Return the name of the backend expected to be quickest, without computing anything.

    The choice and its reason are logged once for each combination of device, kind of block, task and backend.
    """
    training, masked = trains(query, key, value), "matmul" if prefers_products(query, key, value) else "sdpa"
    name, why = pattern.cached(("auto", training, masked), lambda: _choice(pattern, training, masked))
    about = (query.device.type, pattern.attention, training, name)
    if about not in _announced:
        _announced.add(about)
        task = "training" if training else "generation"
        logger.info(f"attention_backend auto: {name} for {task} in {pattern.attention.value} blocks, because {why}")
    return name


def _choice(pattern: AttentionPattern, training: bool, masked: str) -> tuple[str, str]:
    """Return a backend's name and the reason; `masked` is the quickest backend that uses a mask."""
    n_tokens = pattern.classes.index.shape[1]
    if n_tokens < FEW_TOKENS[masked]:
        return masked, f"{n_tokens} tokens are few"
    if pattern.coverage is not None:
        return masked, "every image token has its own weights"
    pairs, copies = _cost_of_groups(pattern)
    most_copies = MOST_COPIES_IN_TRAINING if training else MOST_COPIES
    why = f"{len(pattern.log_weights)} classes of tokens see {pairs:.0%} of all pairs and copy keys {copies:.1f} times"
    return ("grouped" if pairs <= MOST_PAIRS[masked] and copies <= most_copies else masked), why


def _cost_of_groups(pattern: AttentionPattern) -> tuple[float, float]:
    """Return the share of (query, key) pairs seen, and the copies `grouped` makes per key."""
    seen, n_keys = (pattern.log_weights > -torch.inf).float(), pattern.classes.index.numel()
    none = seen.new_zeros(len(pattern.classes.index), len(seen))
    queries, keys = (  # [B, C], tokens of each class
        none.scatter_add(1, index, torch.ones_like(index, dtype=none.dtype))
        for index in (pattern.query_index, pattern.classes.index)
    )
    seen_by = keys @ seen.T  # [B, C], keys that a query of the class sees
    pairs, copies = (queries * seen_by).sum() / pattern.query_index.shape[1], seen_by[queries > 0].sum()
    return float(pairs / n_keys), float(copies / n_keys)


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
