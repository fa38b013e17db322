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

from seg2any.attention.kernel import kernel_dtype
from seg2any.attention.pattern import AttentionPattern, Coverage
from seg2any.errors import UserError

BLOCK = 128
FEWEST_CLASSES = 32  # the table of weights has this many rows or 2, 4, .. times as many: fewer shapes to compile for


@dataclass(frozen=True)
class SortedPattern:
    """A pattern in the order of classes, padded to whole blocks.

    order:     int64 [B, P], the token at each place; padding repeats token 0
    place:     int64 [B, L], where each token is
    score_mod: adds the log weights to scores; None = all seen with full weight
    """

    order: torch.Tensor
    place: torch.Tensor
    block_mask: BlockMask
    score_mod: Callable | None


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    """[B, L, heads, d] -> [B, L, heads, d]. Raises UserError where gradients are needed but torch has none."""
    device = query.device.type
    if device != "cuda" and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise UserError(f"attention_backend 'flex' trains on cuda only, not on {device}; use auto, grouped or sdpa")
    plan, dtype = pattern.made("sorted", lambda: sorted_pattern(pattern)), kernel_dtype(query)
    query, key, value = (_reorder(x.to(dtype), plan.order).transpose(1, 2) for x in (query, key, value))
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
    classes = pattern.classes.index
    order = classes.argsort(dim=1, stable=True)
    n_padding = -classes.shape[1] % BLOCK
    sorted_classes = F.pad(classes.gather(1, order), (0, n_padding), value=len(pattern.log_weights))
    order, place = F.pad(order, (0, n_padding)), order.argsort(1)
    table = _table(pattern.log_weights)
    blocks = block_mask(sorted_classes, table > -math.inf)
    coverage = None if pattern.coverage is None else _sort_coverage(pattern.coverage, order, n_padding)
    return SortedPattern(order, place, blocks, _score_mod(sorted_classes, table, coverage))


def _table(log_weights: torch.Tensor) -> torch.Tensor:
    """Log weights with a class of padding that sees itself, and rows and columns that nothing is of."""
    n_classes = len(log_weights)
    size = max(FEWEST_CLASSES, 2 ** n_classes.bit_length())
    table = F.pad(log_weights, (0, size - n_classes) * 2, value=-math.inf)
    table[n_classes, n_classes] = 0
    return table


def block_mask(classes: torch.Tensor, sees: torch.Tensor) -> BlockMask:
    """classes int64 [B, P] of the tokens, P whole blocks; sees bool [C, C] of query and key class.

    A pair of blocks is computed when any class of one sees any of the other, and without looking at each pair of
    tokens when all do.
    """
    present = classes.new_zeros(*classes.unflatten(1, (-1, BLOCK)).shape[:2], len(sees), dtype=torch.float32)
    present.scatter_(2, classes.unflatten(1, (-1, BLOCK)), 1)
    seen, unseen = (present @ table.float() @ present.mT > 0 for table in (sees, ~sees))
    partial, full = (_listed(each[:, None]) for each in (seen & unseen, seen & ~unseen))

    def mask_mod(b, h, q, k):
        return sees[classes[b, q], classes[b, k]]

    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=mask_mod)


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


def _score_mod(classes: torch.Tensor, table: torch.Tensor, coverage: Coverage | None) -> Callable | None:
    """`mask_mod` alone says what is not seen, except for parts of an image that a region does not cover."""
    log_weights = table.masked_fill(table == -math.inf, 0)

    def weighted(score, b, h, q, k):
        return score + log_weights[classes[b, q], classes[b, k]]

    def covered(score, b, h, q, k):
        text, image = coverage.entity, coverage.place
        extra = coverage.log_weights[b, text[b, q], image[b, k]] + coverage.log_weights[b, text[b, k], image[b, q]]
        return weighted(score, b, h, q, k) + extra

    if coverage is not None:
        return covered
    return weighted if log_weights.any() else None
