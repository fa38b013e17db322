"""Choose the backend of a block: one call with a mask, or `grouped`."""

from __future__ import annotations

import logging

import torch

from seg2any.attention.kernels import kernel_dtype, trains
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.processor import FUSED, costs_of

logger = logging.getLogger(__name__)

MOST_COPIES = 10  # `grouped` may copy every key this often on average,
MOST_COPIES_IN_TRAINING = 6  # or this often in training, where copies are kept for the backward pass
_announced: set[tuple[object, ...]] = set()


def choose(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern) -> str:
    """Return the name of the backend expected to be quickest, without computing anything.

    The choice and its reason are logged, for those who debug, once for each combination of device, kind of block, task
    and backend.
    """
    device, dtype, training = query.device, kernel_dtype(query), trains(query, key, value)
    name, why = pattern.cached(
        ("auto", str(device), dtype, training), lambda: _choice(pattern, device, dtype, training)
    )
    about = (device.type, pattern.attention, training, name)
    if about not in _announced:
        _announced.add(about)
        task = "training" if training else "generation"
        logger.debug(f"attention_backend auto: {name} for {task} in {pattern.attention.value} blocks, because {why}")
    return name


def _choice(pattern: AttentionPattern, device: torch.device, dtype: torch.dtype, training: bool) -> tuple[str, str]:
    """Return a backend's name and the reason."""
    costs = costs_of(device, dtype)
    masked = "sdpa" if costs.kernel == FUSED else "matmul"
    if pattern.coverage is not None:
        return masked, "every image token has its own weights"
    (n_samples, n_keys), n_queries = pattern.classes.index.shape, pattern.query_index.shape[1]
    pairs, copied, calls = work_of_groups(pattern)
    share = (pairs + calls * costs.call + copied * costs.copied) / (costs.masked * n_samples * n_queries * n_keys)
    copies = copied / (n_samples * n_keys)
    why = f"{calls} calls without a mask would copy keys {copies:.1f} times and cost {share:.2f} of one with a mask"
    most_copies = MOST_COPIES_IN_TRAINING if training else MOST_COPIES
    return ("grouped" if share < 1 and copies <= most_copies else masked), why


def work_of_groups(pattern: AttentionPattern) -> tuple[int, int, int]:
    """Count the pairs of query and key that `grouped` computes, the keys that it copies, and its kernel calls."""
    seen, n_classes = (pattern.log_weights > -torch.inf).double(), len(pattern.log_weights)
    queries, keys = (  # [B, C], tokens of each class
        torch.zeros(len(index), n_classes, dtype=torch.float64).scatter_add(1, index, torch.ones(index.shape).double())
        for index in (pattern.query_index, pattern.classes.index)
    )
    seen_by = keys @ seen.T  # [B, C], keys that a query of the class sees
    layouts = pattern.classes.index.unique(dim=0)  # samples of one layout share their calls
    calls = sum(len(row[: pattern.n_queries].unique()) for row in layouts)
    return int((queries * seen_by).sum()), int(seen_by[queries > 0].sum()), calls
