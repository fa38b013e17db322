"""Compute attention with an additive mask: torch's fused kernel, and matrix products.

Tensors are "heads first", [B, heads, L, d]; only `masked_sdpa` takes FLUX's [B, L, heads, d].
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.processor import FUSED, PRODUCTS, costs_of

# query [B, heads, q, d], key and value [B, heads, L, d], mask or None -> [B, heads, q, d]. The mask is additive, in the
# query's dtype, and broadcasts to [B, 1, q, L]: all heads share it; None = every query sees every key.
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]

MOST_SCORES = 2**20  # scores that `products` holds at a time: 2 MB in bfloat16, which stay in a core's cache
MOST_SCORES_BACKWARD = 2**22  # backward three products share each part of the scores, and large ones are quicker
FEW_PAIRS = 4096  # pairs of query and key up to which all heads together are quicker than one by one
ALL_BUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the dtype in which torch's kernels compute: autocast's if on, else the query's."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def heads_first(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn [B, L, heads, d] into [B, heads, L, d] in `dtype`.

    On a CPU this copies, which costs less than it saves: kernels read a strided head up to 1.4 times more slowly.
    """
    x = x.to(dtype).transpose(1, 2)
    return x.contiguous() if x.device.type == "cpu" else x


def masked_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Run torch's fused kernel as stock FLUX does: [B, L, heads, d] each -> [B, queries, heads, d].

    mask: additive, in `kernel_dtype(query)`, broadcastable to [B, heads, queries, L]
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def without_cudnn(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context in which torch does not take cuDNN's attention; on other devices than CUDA it does nothing.

    cuDNN builds a plan for every new shape, half a second each, and every layout has shapes of its own. With a mask its
    gradients may be NaN (pytorch issue 196678).
    """
    return sdpa_kernel(ALL_BUT_CUDNN) if device.type == "cuda" else contextlib.nullcontext()


def fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Run torch's fused kernel; see `Kernel`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute attention by matrix products, head by head; see `Kernel`.

    Scores are rounded to the precision of the inputs. The backward pass computes them again.
    """
    with torch.autocast(query.device.type, enabled=False):
        if trains(query, key, value):
            return _Products.apply(query, key, value, mask)
        return _products(query, key, value, mask)


KERNELS: dict[str, Kernel] = {FUSED: fused, PRODUCTS: products}


def quickest(query: torch.Tensor) -> Kernel:
    """Return the kernel that is quickest on the query's device, in its dtype."""
    return KERNELS[costs_of(query.device, query.dtype).kernel]


def trains(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return True if a backward pass can follow."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))


def _products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute few pairs for all heads together; many queries in slices whose scores fit in a core's cache."""
    (n_samples, n_heads, n_queries, d), n_keys = query.shape, key.shape[2]
    bias, beta = (query.new_zeros(1, 1, 1, 1), 0) if mask is None else (mask, 1)
    if n_queries * n_keys <= FEW_PAIRS:
        queries, keys, values = (x.flatten(0, 1) for x in (query, key, value))
        bias = bias.expand(n_samples, n_heads, n_queries, n_keys).flatten(0, 1)
        scores = torch.baddbmm(bias, queries, keys.mT, beta=beta, alpha=d**-0.5)
        return (scores.softmax(-1) @ values).unflatten(0, (n_samples, n_heads))
    bias, output = bias.expand(n_samples, 1, n_queries, -1), torch.empty_like(query)
    for sample, head in itertools.product(range(n_samples), range(n_heads)):
        keys, values = key[sample, head].T, value[sample, head]
        for part in _parts(n_queries, n_keys, MOST_SCORES):
            scores = torch.addmm(bias[sample, 0, part], query[sample, head, part], keys, beta=beta, alpha=d**-0.5)
            torch.mm(scores.softmax(-1), values, out=output[sample, head, part])
    return output


def _parts(n_queries: int, n_keys: int, most_scores: int) -> list[slice]:
    n_rows = max(64, most_scores // n_keys)
    return [slice(start, start + n_rows) for start in range(0, n_queries, n_rows)]


class _Products(torch.autograd.Function):
    """`products` with a backward pass that keeps no scores.

    With weights P = softmax(S) and output O = P V, the gradient of S is P (dO V^T - rowsum(dO O)).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = _products(query, key, value, mask)
        ctx.save_for_backward(query, key, value, mask, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of query, key and value, head by head."""
        query, key, value, mask, output = ctx.saved_tensors
        scale, of_output = query.shape[-1] ** -0.5, of_output.to(query.dtype).contiguous()
        bias, beta = (query.new_zeros(1, 1, 1, 1), 0) if mask is None else (mask, 1)
        bias = bias.expand(len(query), 1, query.shape[2], -1)
        means = (of_output.float() * output.float()).sum(-1, keepdim=True).to(query.dtype)
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        for at in itertools.product(range(len(query)), range(query.shape[1])):
            keys, values, bias_at = key[at], value[at], bias[at[0], 0]
            sums = torch.zeros(2, *keys.shape, dtype=torch.promote_types(keys.dtype, torch.float32), device=keys.device)
            for part in _parts(query.shape[2], key.shape[2], MOST_SCORES_BACKWARD):
                queries, of_outputs = query[at][part], of_output[at][part]
                weights = torch.addmm(bias_at[part], queries, keys.T, beta=beta, alpha=scale).softmax(-1)
                sums[1].add_(weights.T @ of_outputs)
                of_scores = torch.mm(of_outputs, values.T).sub_(means[at][part]).mul_(weights).mul_(scale)
                torch.mm(of_scores, keys, out=of_query[at][part])
                sums[0].add_(of_scores.T @ queries)
            of_key[at], of_value[at] = sums
        return of_query, of_key, of_value, None


def masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern, kernel: Kernel
) -> torch.Tensor:
    """Run a kernel with the mask of a pattern.

    query [B, heads, queries, d], key and value [B, heads, L, d] -> [B, heads, queries, d]
    One call with the mask that all blocks share, or one for each slice of the queries if that mask would be too large.
    """
    slices = pattern.slices(query.dtype)
    if len(slices) > 1 and trains(query, key, value):
        return _Recomputed.apply(query, key, value, pattern, kernel)
    return _in_slices(query, key, value, pattern, kernel)


def _in_slices(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern, kernel: Kernel
) -> torch.Tensor:
    masks = pattern.masks(query.dtype, query.device)
    outputs = [kernel(query[:, :, part], key, value, mask) for part, mask in masks]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


class _Recomputed(torch.autograd.Function):
    """Attention whose backward pass recomputes every slice of queries.

    So no block keeps the masks of all slices, L x L, for its backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pattern: AttentionPattern,
        kernel: Kernel,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pattern, ctx.kernel = pattern, kernel
        with torch.autocast(query.device.type, enabled=False):
            return _in_slices(query, key, value, pattern, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of query, key and value, slice by slice from recomputed outputs."""
        query, key, value = ctx.saved_tensors
        sums = torch.promote_types(key.dtype, torch.float32)  # gradients of key and value add up over all slices
        of_key, of_value = (torch.zeros_like(x, dtype=sums) for x in (key, value))
        of_query = torch.empty_like(query)
        for part, mask in ctx.pattern.masks(query.dtype, query.device):
            leaves = [x.detach().requires_grad_() for x in (query[:, :, part], key, value)]
            with torch.enable_grad(), torch.autocast(query.device.type, enabled=False), without_cudnn(query.device):
                output = ctx.kernel(*leaves, mask)
            of_query[:, :, part], *more = torch.autograd.grad(output, leaves, gradient[:, :, part])
            for total, term in zip((of_key, of_value), more, strict=True):
                total.add_(term)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None
