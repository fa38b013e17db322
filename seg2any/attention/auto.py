"""Backend `auto`: which backend computes the attention of a block, and why. Only rounding depends on it."""

from __future__ import annotations

import logging

import torch

from seg2any.attention.kernel import prefers_products, trains
from seg2any.attention.pattern import AttentionPattern

logger = logging.getLogger(__name__)

FEW_TOKENS = {"sdpa": 2048, "matmul": 1024}  # below, calls of a kernel cost more than pairs of tokens
MOST_PAIRS = {"sdpa": 0.7, "matmul": 0.6}  # share of all L x L that `grouped` may compute in its place, and
MOST_COPIES = 10  # of every key that it may make,
MOST_COPIES_IN_TRAINING = 6  # or keep for the backward pass
_said: set[tuple[object, ...]] = set()


def choose(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> str:
    """The name of a backend. Says, once for each kind of device, block and answer, what it chose and why."""
    training, masked = trains(query, key, value), "matmul" if prefers_products(query, key, value) else "sdpa"
    name, why = pattern.made(("auto", training, masked), lambda: _choice(pattern, training, masked))
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
