"""The one attention call of the repository. Backends are interchangeable and each is tested against `dense`.

name     memory for the pattern        what it does
dense    L x L, float32                the formula, the oracle of all others
sdpa     512 x L for all heads         torch's fused kernel with that mask
matmul   512 x L for all heads         the formula in the model's precision, head by head; quick on CPUs with bfloat16;
                                       trains as sdpa above 512 tokens
grouped  O(L) for every class          a kernel call without mask for each class of tokens with equal rows
flex     (L / 128)^2                   a kernel that skips blocks of tokens that do not see each other; trains on CUDA
auto     as chosen                     one of these, by block
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
    in_parts,
    in_parts_with_gradients,
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
# [B, L, heads, d] after RoPE. `attention_weights` turns any rows of them and of `pattern.rows` into weights.
Tap = Callable[[int, torch.Tensor, torch.Tensor, AttentionPattern | None], None]

FEW_TOKENS = {"sdpa": 2048, "matmul": 1024}  # below, calls of a kernel cost more than pairs of tokens
MOST_PAIRS = {"sdpa": 0.7, "matmul": 0.6}  # share of all L x L that `grouped` may compute in its place, and
MOST_COPIES = 10  # of every key that it may make,
MOST_COPIES_IN_TRAINING = 6  # or keep for the backward pass
_said: set[tuple[object, ...]] = set()


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + mask) in float32. q [B, Lq, heads, d], k [B, Lk, heads, d] -> [B, heads, Lq, Lk]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask.float()).softmax(-1)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """The oracle: the textbook formula in float32, without autocast."""
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_weights(query, key, pattern.mask())
        return torch.einsum("bhqk,bkhd->bqhd", weights, value.float()).to(value.dtype)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """torch's fused kernel, for so many queries at a time; it reads their one mask for all heads."""
    return (in_parts_with_gradients if trains(query, key, value) else in_parts)(query, key, value, pattern)


def matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """The formula in the model's own precision. On CPUs with bfloat16 matrix units it takes a third of `sdpa`'s time;
    that trains at a few hundred tokens only: it keeps every pair's score of every head."""
    if not trains(query, key, value):
        return in_parts(query, key, value, pattern, products)
    if len(pattern.parts) > 1:
        return sdpa(query, key, value, pattern)
    return products_with_gradients(query, key, value, pattern.mask(kernel_dtype(query)))


def auto(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """The backend that `choose` expects to be quickest."""
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
    """query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d].

    pattern: who sees whom; None = every token every token

    Raises UserError for a backend that would lose the regions or cannot do what is asked of it.
    """
    if attention_backend not in BACKENDS:
        check_backend(attention_backend)
    if pattern is None or pattern.is_open:
        return quickest(query, key, value)
    return BACKENDS[attention_backend](query, key, value, pattern)


def choose(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> str:
    """The name of a backend. Says, once for each kind of device, block and answer, what it chose and why."""
    training, masked = trains(query, key, value), "matmul" if prefers_products(query, key, value) else "sdpa"
    name, why = pattern.cached(("auto", training, masked), lambda: _choice(pattern, training, masked))
    about = (query.device.type, pattern.attention, training, name)
    if about not in _said:
        _said.add(about)
        task = "training" if training else "generation"
        logger.info(f"attention_backend auto: {name} for {task} in {pattern.attention.value} blocks, since {why}")
    return name


def _choice(pattern: AttentionPattern, training: bool, masked: str) -> tuple[str, str]:
    """masked: the quickest backend with a mask."""
    n_tokens = pattern.classes.index.shape[1]
    if n_tokens < FEW_TOKENS[masked]:
        return masked, f"{n_tokens} tokens are few"
    if pattern.coverage is not None:
        return masked, "every image token has weights of its own"
    pairs, copies = _cost_of_groups(pattern)
    most_copies = MOST_COPIES_IN_TRAINING if training else MOST_COPIES
    why = f"{len(pattern.log_weights)} classes of tokens see {pairs:.0%} of all pairs and copy keys {copies:.1f} times"
    return ("grouped" if pairs <= MOST_PAIRS[masked] and copies <= most_copies else masked), why


def _cost_of_groups(pattern: AttentionPattern) -> tuple[float, float]:
    """Share of all pairs of query and key that are seen, and how often keys would be copied for the classes that see
    them."""
    seen, n_keys = (pattern.log_weights > -torch.inf).float(), pattern.classes.index.numel()
    none = seen.new_zeros(len(pattern.classes.index), len(seen))
    asking, keys = (
        none.scatter_add(1, index, torch.ones_like(index, dtype=none.dtype))
        for index in (pattern.query_index, pattern.classes.index)
    )
    seen_by = keys @ seen.T  # [B, C] tokens that a query of the class sees
    pairs, copies = (asking * seen_by).sum() / pattern.query_index.shape[1], seen_by[asking > 0].sum()
    return float(pairs / n_keys), float(copies / n_keys)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Tokens and settings of a batch, and the at most two distinct patterns that follow from them."""

    tokens: TokenLayout
    settings: ConditionSettings
    _patterns: dict[Attention, AttentionPattern] = field(default_factory=dict, repr=False)

    @cached_property
    def classes(self) -> TokenClasses:
        """The token classes, shared by the patterns of all blocks."""
        return TokenClasses.of(self.tokens)

    def pattern(self, block: int) -> AttentionPattern:
        """Return who sees whom in a block, counted over double then single blocks."""
        attention = self.settings.attention_of(block)
        if attention not in self._patterns:
            self._patterns[attention] = AttentionPattern(self.tokens, self.classes, attention, self.settings)
        return self._patterns[attention]

    def mask(self, block: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        """Return the additive mask [B, 1, L, L] of a block; None = all see all."""
        pattern = self.pattern(block)
        return None if pattern.is_open else pattern.mask(dtype)

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend in one block: query [B, queries, heads, d], of the first tokens or of all, key and value
        [B, L, heads, d] -> [B, queries, heads, d]."""
        pattern = self.pattern(block).with_queries(query.shape[1])
        return attend(query, key, value, pattern, self.settings.attention_backend)
