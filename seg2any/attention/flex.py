"""Compute backend `flex`: torch's flex_attention over tokens sorted by class.

Sorting hides whole blocks of 128 x 128 pairs, which the kernel skips. The block mask follows from the classes in each
block, without an L x L mask. On CUDA the kernel is compiled and trains. Elsewhere torch has only the forward pass; it
runs uncompiled and computes all L x L scores, which is good enough for tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from seg2any.attention.kernels import kernel_dtype
from seg2any.attention.pattern import AttentionPattern, Coverage, send
from seg2any.system.errors import UserError

BLOCK = 128
FEWEST_CLASSES = 256  # rows of the table of weights, so that one shape is compiled; twice as many where these are few
MOST_COMPILATIONS = 64  # of batch sizes, gradients, weights: torch raises beyond its own limit of 8


@dataclass(frozen=True)
class SortedPattern:
    """A pattern with its tokens sorted by class and padded to whole blocks.

    queries, keys: int64 [B, P], the token of every sorted row; padding repeats token 0
    row_of_query:  int64 [B, queries], the sorted row of every query
    block_mask:    the blocks to compute, and in those seen only in part the pairs that are seen
    score_mod:     function that adds the log weights to scores; None = all weights are 1
    """

    queries: torch.Tensor
    keys: torch.Tensor
    row_of_query: torch.Tensor
    block_mask: BlockMask
    score_mod: Callable | None


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """Compute attention with torch's flex_attention, compiled on CUDA.

    query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d]
    Raises UserError for training elsewhere than on CUDA, where torch has no backward pass.
    """
    device = query.device.type
    if device != "cuda" and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise UserError(f"attention_backend 'flex' trains on cuda only, not on {device}; use auto, grouped or sdpa")
    plan, dtype = pattern.cached(("sorted", device), lambda: sorted_pattern(pattern, query.device)), kernel_dtype(query)
    orders = (plan.queries, plan.keys, plan.keys)
    query, key, value = (
        _reorder(x.to(dtype), order).transpose(1, 2) for x, order in zip((query, key, value), orders, strict=True)
    )
    attention = compiled() if device == "cuda" else flex_attention
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS) if device == "cuda" else nullcontext():
        out = attention(query, key, value, score_mod=plan.score_mod, block_mask=plan.block_mask)
    return _reorder(out.transpose(1, 2), plan.row_of_query)


@functools.cache
def compiled(backend: str | Callable = "inductor") -> Callable:
    """Compile flex_attention once for all lengths."""
    # Without fullgraph torch may fall back, silently, to computing all pairs.
    return torch.compile(flex_attention, backend=backend, dynamic=True, fullgraph=True)


def _reorder(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorder the rows of x: x [B, L, heads, d], order [B, P] -> [B, P, heads, d]."""
    return x.gather(1, order[:, :, None, None].expand(-1, -1, *x.shape[2:]))


def sorted_pattern(pattern: AttentionPattern, device: torch.device | str = "cpu") -> SortedPattern:
    """Sort a pattern's tokens by class, so that most blocks are seen entirely or not at all."""
    queries, keys = (Sorted.of(index, pattern) for index in (pattern.query_index, pattern.classes.index))
    table = _table(pattern.log_weights)
    blocks = block_mask(queries.classes, keys.classes, table > -math.inf, device)
    row_of_query = send(queries.order[:, : pattern.query_index.shape[1]].argsort(1), device)
    score_mod = _score_mod(queries, keys, table, device)
    return SortedPattern(send(queries.order, device), send(keys.order, device), row_of_query, blocks, score_mod)


@dataclass(frozen=True)
class Sorted:
    """Tokens sorted by class; padding to whole blocks has a class of its own.

    order:    int64 [B, P], the token of every row
    classes:  int64 [B, P], the class of every row
    coverage: entity and patch of every row for method `place`, else None; padding is neither text nor image
    """

    order: torch.Tensor
    classes: torch.Tensor
    coverage: Coverage | None

    @classmethod
    def of(cls, index: torch.Tensor, pattern: AttentionPattern) -> Sorted:
        """Sort the first tokens of a pattern, whose classes are index int64 [B, tokens]."""
        order = index.argsort(dim=1, stable=True)
        n_padding = -index.shape[1] % BLOCK
        classes = F.pad(index.gather(1, order), (0, n_padding), value=len(pattern.log_weights))
        order = F.pad(order, (0, n_padding))
        coverage = None if pattern.coverage is None else _sort_coverage(pattern.coverage, order, n_padding)
        return cls(order, classes, coverage)


def _table(log_weights: torch.Tensor) -> torch.Tensor:
    """Extend log weights [C, C] by a padding class, which sees only itself, and unused rows."""
    n_classes = len(log_weights)
    size = max(FEWEST_CLASSES, 2 ** n_classes.bit_length())
    table = F.pad(log_weights, (0, size - n_classes) * 2, value=-math.inf)
    table[n_classes, n_classes] = 0
    return table


def block_mask(
    queries: torch.Tensor, keys: torch.Tensor, sees: torch.Tensor, device: torch.device | str = "cpu"
) -> BlockMask:
    """Build the block mask of sorted tokens from the classes in each block, on the CPU, and send it to a device.

    queries, keys: int64 [B, P], the class of every row; P is a multiple of BLOCK
    sees:          bool [C, C], whether a query class sees a key class

    A pair of blocks is computed if any class of one sees any class of the other; `mask_mod` is evaluated for its pairs
    of tokens only if some of them are hidden.
    """
    of_queries, of_keys = (
        _classes_present(classes.unflatten(1, (-1, BLOCK)), len(sees)) for classes in (queries, keys)
    )
    seen, unseen = (of_queries @ table.float() @ of_keys.mT > 0 for table in (sees, ~sees))
    partial, full = (_listed(each[:, None]) for each in (seen & unseen, seen & ~unseen))
    queries, keys, sees = (send(x, device) for x in (queries, keys, sees))

    def mask_mod(b, h, q, k):
        return sees[queries[b, q], keys[b, k]]

    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=mask_mod).to(device)


def _classes_present(blocks: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Mark the classes in each block: int64 [B, n, BLOCK] -> float32 [B, n, C], 1 = present."""
    none = torch.zeros(*blocks.shape[:2], n_classes, device=blocks.device)
    return none.scatter(2, blocks, 1)


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the True columns of each row, bool [B, 1, n, n], as BlockMask wants them.

    Counts are [B, 1, n], columns [B, 1, n, n] with the True ones first, in order.
    """
    return blocks.sum(-1, dtype=torch.int32), (~blocks).byte().argsort(dim=-1, stable=True).int().contiguous()


def _sort_coverage(coverage: Coverage, order: torch.Tensor, n_padding: int) -> Coverage:
    """Reorder the coverage like the sorted tokens; padding becomes neither text nor image."""
    log_weights = coverage.log_weights
    outside = torch.arange(order.shape[1], device=order.device) >= order.shape[1] - n_padding
    entity, patch = (
        each.gather(1, order).masked_fill(outside, last - 1)
        for each, last in ((coverage.entity, log_weights.shape[1]), (coverage.patch, log_weights.shape[2]))
    )
    return Coverage(log_weights, entity, patch)


def _score_mod(queries: Sorted, keys: Sorted, table: torch.Tensor, device: torch.device | str) -> Callable | None:
    """Build the function that adds log weights to scores on a device, or None if all weights are 1.

    Pairs that the classes hide are left to `mask_mod`; coverage 0 of method `place` is added here as -inf.
    """
    log_weights = table.masked_fill(table == -math.inf, 0)
    if keys.coverage is None and not log_weights.any():
        return None
    log_weights, query_classes, key_classes = (send(x, device) for x in (log_weights, queries.classes, keys.classes))

    def weighted(score, b, h, q, k):
        return score + log_weights[query_classes[b, q], key_classes[b, k]]

    if keys.coverage is None:
        return weighted
    of_entity, key_entity, key_patch = keys.coverage.to(torch.float32, device)
    _, query_entity, query_patch = queries.coverage.to(torch.float32, device)

    def covered(score, b, h, q, k):
        of_query = of_entity[b, query_entity[b, q], key_patch[b, k]]
        of_key = of_entity[b, key_entity[b, k], query_patch[b, q]]
        return weighted(score, b, h, q, k) + of_query + of_key

    return covered
