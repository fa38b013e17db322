"""Kernels of the backends: attention with an additive mask on tensors [B, L, heads, d]."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from seg2any.attention.pattern import AttentionPattern
from seg2any.system.precision import has_fast_bfloat16

MOST_SCORES = 2**20  # scores that `products` holds at a time: 2 MB in bfloat16, which stay in a core's cache
FEW_PAIRS = 4096  # pairs of query and key up to which all heads together are quicker than one by one


def kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the dtype in which torch's kernels compute: autocast's if on, else the query's."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def masked_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Run torch's fused attention kernel.

    query [B, Lq, heads, d], key and value [B, Lk, heads, d] -> [B, Lq, heads, d]

    mask: additive, in `kernel_dtype(query)`, broadcastable to [B, heads, Lq, Lk]; None = every query sees every key
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `masked_sdpa` by matrix products, head by head and without gradients.

    Scores are rounded to the precision of the inputs. Few pairs are computed for all heads together; many queries in
    slices whose scores fit in a core's cache. mask: as in `masked_sdpa`, with one head that all heads share.
    """
    query, key, value = (x.to(kernel_dtype(query)) for x in (query, key, value))
    n_rows, scale = max(64, MOST_SCORES // key.shape[1]), query.shape[-1] ** -0.5
    mask, beta = (query.new_zeros(1, 1, 1, 1), 0) if mask is None else (mask, 1)
    mask = mask.expand(len(query), 1, query.shape[1], -1)
    output = torch.empty_like(query)
    with torch.autocast(query.device.type, enabled=False):
        if query.shape[1] * key.shape[1] <= FEW_PAIRS:
            queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
            bias = mask.expand(-1, query.shape[2], -1, -1).flatten(0, 1)
            scores = torch.baddbmm(bias, queries, keys.mT, beta=beta, alpha=scale)
            return (scores.softmax(-1) @ values).unflatten(0, (len(query), -1)).transpose(1, 2)
        for sample, head in itertools.product(range(len(query)), range(query.shape[2])):
            keys, values = key[sample, :, head].T, value[sample, :, head]
            for start in range(0, query.shape[1], n_rows):
                part = slice(start, start + n_rows)
                scores = torch.addmm(mask[sample, 0, part], query[sample, part, head], keys, beta=beta, alpha=scale)
                output[sample, part, head] = scores.softmax(-1) @ values
    return output


def products_with_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Compute `masked_sdpa` by matrix products that a backward pass can follow.

    Keeps scores [B, heads, Lq, Lk]; the mask is required.
    """
    query, key, value = (x.transpose(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    return ((query @ key.mT).add_(mask).softmax(-1).to(value.dtype) @ value).transpose(1, 2)


def prefers_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return True if `products` beats torch's kernel here: on CPUs with bfloat16 units."""
    if query.device.type != "cpu" or kernel_dtype(query) != torch.bfloat16 or trains(query, key, value):
        return False
    return _cpu_has_fast_bfloat16()


def quickest(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `masked_sdpa`, by `products` where that is quicker."""
    return (products if prefers_products(query, key, value) else masked_sdpa)(query, key, value, mask)


def trains(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return True if a backward pass can follow."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))


@functools.cache
def _cpu_has_fast_bfloat16() -> bool:
    return has_fast_bfloat16("cpu")


def in_slices(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: AttentionPattern,
    kernel: Callable[..., torch.Tensor] = masked_sdpa,
) -> torch.Tensor:
    """Run a kernel of this module on one slice of the queries after another.

    query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d]
    The mask of a single slice is small and kept with the pattern; rows of several slices are built for each call.
    """
    dtype = kernel_dtype(query)
    if len(pattern.slices) == 1:
        return kernel(query, key, value, pattern.mask(dtype))
    return torch.cat([kernel(query[:, part], key, value, pattern.rows(part, dtype)) for part in pattern.slices], 1)


def in_slices_with_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern
) -> torch.Tensor:
    """Run torch's kernel slice by slice in a forward pass that a backward pass follows."""
    if len(pattern.slices) == 1:
        return in_slices(query, key, value, pattern)
    return _Recomputed.apply(*(x.to(kernel_dtype(query)) for x in (query, key, value)), pattern)


class _Recomputed(torch.autograd.Function):
    """Attention whose backward pass recomputes every slice of queries.

    So no block keeps the masks of all slices, L x L, for its backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pattern = pattern
        with torch.autocast(query.device.type, enabled=False):
            return in_slices(query, key, value, pattern)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of query, key and value, slice by slice from recomputed outputs."""
        query, key, value = ctx.saved_tensors
        sums = torch.promote_types(key.dtype, torch.float32)  # gradients of key and value add up over all slices
        of_key, of_value = (torch.zeros_like(x, dtype=sums) for x in (key, value))
        of_query = torch.empty_like(query)
        for part in ctx.pattern.slices:
            leaves = [x.detach().requires_grad_() for x in (query[:, part], key, value)]
            with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
                output = masked_sdpa(*leaves, ctx.pattern.rows(part, query.dtype))
            of_query[:, part], *more = torch.autograd.grad(output, leaves, gradient[:, part])
            for total, term in zip((of_key, of_value), more, strict=True):
                total.add_(term)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None
