"""Attention with a mask, a part of the queries at a time: nothing of size L x L is made, to generate or to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from seg2any.attention.kernel import kernel_dtype, masked_sdpa
from seg2any.attention.pattern import AttentionPattern


def in_parts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: AttentionPattern,
    kernel: Callable[..., torch.Tensor] = masked_sdpa,
) -> torch.Tensor:
    """query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d], by a function of
    `seg2any.attention.kernel`. For few tokens the mask is small, and quicker to keep than to make."""
    dtype = kernel_dtype(query)
    if len(pattern.parts) == 1:
        return kernel(query, key, value, pattern.mask(dtype))
    return torch.cat([kernel(query[:, part], key, value, pattern.rows(part, dtype)) for part in pattern.parts], 1)


def in_parts_with_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern
) -> torch.Tensor:
    """The same by torch's kernel for a forward pass that is followed by a backward pass."""
    if len(pattern.parts) == 1:
        return in_parts(query, key, value, pattern)
    return _Recomputed.apply(*(x.to(kernel_dtype(query)) for x in (query, key, value)), pattern)


class _Recomputed(torch.autograd.Function):
    """Attention whose backward pass computes every part again. Else each block would keep each part's mask: L x L."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pattern = pattern
        with torch.autocast(query.device.type, enabled=False):
            return in_parts(query, key, value, pattern)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        sums = torch.promote_types(key.dtype, torch.float32)  # of as many terms as there are parts
        of_key, of_value = (torch.zeros_like(x, dtype=sums) for x in (key, value))
        of_query = torch.empty_like(query)
        for part in ctx.pattern.parts:
            leaves = [x.detach().requires_grad_() for x in (query[:, part], key, value)]
            with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
                output = masked_sdpa(*leaves, ctx.pattern.rows(part, query.dtype))
            of_query[:, part], *more = torch.autograd.grad(output, leaves, gradient[:, part])
            for total, term in zip((of_key, of_value), more, strict=True):
                total.add_(term)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None
