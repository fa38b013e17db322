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

from collections.abc import Callable

import torch

from seg2any.attention.auto import choose
from seg2any.attention.flex import flex
from seg2any.attention.grouped import grouped
from seg2any.attention.kernel import kernel_dtype, products, products_with_gradients, quickest, trains
from seg2any.attention.names import check_backend
from seg2any.attention.parts import in_parts, in_parts_with_gradients
from seg2any.attention.pattern import AttentionPattern

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionPattern], torch.Tensor]


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
    check_backend(attention_backend)
    if pattern is None or pattern.is_open:
        return quickest(query, key, value)
    return BACKENDS[attention_backend](query, key, value, pattern)
