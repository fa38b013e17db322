"""Backend `flex`: torch's flex_attention. Tokens are sorted by class, so that whole blocks of 128 x 128 pairs are never
seen and skipped. The block mask follows from the classes in each block; nothing of size L x L is made.

Compiled on CUDA, where it also trains. Elsewhere torch offers only its forward pass, here without compilation, which
computes all L x L scores: for tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from seg2any.attention.kernels import kernel_dtype
from seg2any.attention.pattern import AttentionPattern, Coverage
from seg2any.system.errors import UserError

BLOCK = 128
FEWEST_CLASSES = 32  # the table of weights has this many rows or 2, 4, .. times as many: fewer shapes to compile for


@dataclass(frozen=True)
class SortedPattern:
    """A pattern in the order of classes, padded to whole blocks.

    queries, keys: int64 [B, P], the token at each place; padding repeats token 0
    place:         int64 [B, queries], where each query is
    score_mod:     adds the log weights to scores; None = all seen with full weight
    """

    queries: torch.Tensor
    keys: torch.Tensor
    place: torch.Tensor
    block_mask: BlockMask
    score_mod: Callable | None


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """query [B, queries, heads, d], key and value [B, L, heads, d] -> [B, queries, heads, d].

    Raises UserError where gradients are needed but torch has none.
    """
    device = query.device.type
    if device != "cuda" and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise UserError(f"attention_backend 'flex' trains on cuda only, not on {device}; use auto, grouped or sdpa")
    plan, dtype = pattern.cached("sorted", lambda: sorted_pattern(pattern)), kernel_dtype(query)
    orders = (plan.queries, plan.keys, plan.keys)
    query, key, value = (
        _reorder(x.to(dtype), order).transpose(1, 2) for x, order in zip((query, key, value), orders, strict=True)
    )
    attention = _compiled() if device == "cuda" else flex_attention
    out = attention(query, key, value, score_mod=plan.score_mod, block_mask=plan.block_mask)
    return _reorder(out.transpose(1, 2), plan.place)


@functools.cache
def _compiled() -> Callable:
    """fullgraph: torch would otherwise fall back, silently, to computing all pairs."""
    return torch.compile(flex_attention, fullgraph=True)


def _reorder(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """x [B, L, heads, d], order [B, P] -> [B, P, heads, d]."""
    return x.gather(1, order[:, :, None, None].expand(-1, -1, *x.shape[2:]))


def sorted_pattern(pattern: AttentionPattern) -> SortedPattern:
    """The pattern with its tokens sorted by class, so that blocks of 128 are seen whole or not at all."""
    queries, keys = (Sorted.of(index, pattern) for index in (pattern.query_index, pattern.classes.index))
    table = _table(pattern.log_weights)
    blocks = block_mask(queries.classes, keys.classes, table > -math.inf)
    place = queries.order[:, : pattern.query_index.shape[1]].argsort(1)
    return SortedPattern(queries.order, keys.order, place, blocks, _score_mod(queries, keys, table))


@dataclass(frozen=True)
class Sorted:
    """Tokens in the order of their classes, padded to whole blocks with a class of their own.

    order, classes: int64 [B, P]
    coverage:       theirs, where the pattern has any; padding is neither text nor image
    """

    order: torch.Tensor
    classes: torch.Tensor
    coverage: Coverage | None

    @classmethod
    def of(cls, index: torch.Tensor, pattern: AttentionPattern) -> Sorted:
        """index: int64 [B, tokens], the classes of the first tokens of the pattern."""
        order = index.argsort(dim=1, stable=True)
        n_padding = -index.shape[1] % BLOCK
        classes = F.pad(index.gather(1, order), (0, n_padding), value=len(pattern.log_weights))
        order = F.pad(order, (0, n_padding))
        coverage = None if pattern.coverage is None else _sort_coverage(pattern.coverage, order, n_padding)
        return cls(order, classes, coverage)


def _table(log_weights: torch.Tensor) -> torch.Tensor:
    """Log weights with a class of padding that sees itself, and rows and columns that nothing is of."""
    n_classes = len(log_weights)
    size = max(FEWEST_CLASSES, 2 ** n_classes.bit_length())
    table = F.pad(log_weights, (0, size - n_classes) * 2, value=-math.inf)
    table[n_classes, n_classes] = 0
    return table


def block_mask(queries: torch.Tensor, keys: torch.Tensor, sees: torch.Tensor) -> BlockMask:
    """queries, keys int64 [B, P], the classes of tokens, P whole blocks; sees bool [C, C] of query and key class.

    A pair of blocks is computed when any class of one sees any of the other, and without looking at each pair of
    tokens when all do.
    """
    asking, present = (_classes_present(classes.unflatten(1, (-1, BLOCK)), len(sees)) for classes in (queries, keys))
    seen, unseen = (asking @ table.float() @ present.mT > 0 for table in (sees, ~sees))
    partial, full = (_listed(each[:, None]) for each in (seen & unseen, seen & ~unseen))

    def mask_mod(b, h, q, k):
        return sees[queries[b, q], keys[b, k]]

    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=mask_mod)


def _classes_present(blocks: torch.Tensor, n_classes: int) -> torch.Tensor:
    """int64 [B, n, BLOCK] -> float32 [B, n, C], 1 where any token of a block is of a class."""
    none = torch.zeros(*blocks.shape[:2], n_classes, device=blocks.device)
    return none.scatter(2, blocks, 1)


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [B, 1, n, n] -> int32 [B, 1, n], how many of each row, and [B, 1, n, n], which: these first, in order."""
    return blocks.sum(-1, dtype=torch.int32), (~blocks).byte().argsort(dim=-1, stable=True).int().contiguous()


def _sort_coverage(coverage: Coverage, order: torch.Tensor, n_padding: int) -> Coverage:
    """Of the sorted tokens; padding is neither text nor image."""
    log_weights = coverage.log_weights
    outside = torch.arange(order.shape[1], device=order.device) >= order.shape[1] - n_padding
    entity, place = (
        each.gather(1, order).masked_fill(outside, last - 1)
        for each, last in ((coverage.entity, log_weights.shape[1]), (coverage.place, log_weights.shape[2]))
    )
    return Coverage(log_weights, entity, place)


def _score_mod(queries: Sorted, keys: Sorted, table: torch.Tensor) -> Callable | None:
    """`mask_mod` alone says what is not seen, except for parts of an image that a region does not cover."""
    log_weights = table.masked_fill(table == -math.inf, 0)
    query_classes, key_classes, asking, seen = queries.classes, keys.classes, queries.coverage, keys.coverage

    def weighted(score, b, h, q, k):
        return score + log_weights[query_classes[b, q], key_classes[b, k]]

    def covered(score, b, h, q, k):
        of_query = seen.log_weights[b, asking.entity[b, q], seen.place[b, k]]
        of_key = seen.log_weights[b, seen.entity[b, k], asking.place[b, q]]
        return weighted(score, b, h, q, k) + of_query + of_key

    if seen is not None:
        return covered
    return weighted if log_weights.any() else None
