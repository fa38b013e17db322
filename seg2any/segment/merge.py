"""Merge similar maps to regions, without any name for them (Seg4Diff, arXiv 2509.18096), and compare with a truth."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

THRESHOLD = 0.1  # the published choice


def divergences(maps: Tensor) -> Tensor:
    """Compute the symmetric divergence (KL(x|y) + KL(y|x)) / 2 of maps [n, h, w] over positions: float64 [n, n]."""
    logs = maps.flatten(1).double().log_softmax(1)
    x = logs.exp()
    own, crossed = (x * logs).sum(1), x @ logs.T
    return (own[:, None] + own - crossed - crossed.T) / 2


def groups_of(divergence: Tensor, threshold: float = THRESHOLD) -> list[list[int]]:
    """Group the numbers of similar maps by one walk over them in order.

    A map that no group has yet begins one: all maps whose divergence from it is below the threshold, also those that
    earlier groups have. So a map may be in several groups.
    """
    near, groups, taken = (divergence < threshold).cpu().numpy(), [], set()
    for first in range(len(near)):
        if first not in taken:
            groups.append(np.flatnonzero(near[first]).tolist())
            taken.update(groups[-1])
    return groups


def merged(maps: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Average the maps [n, h, w] of each group, after a softmax over positions: [m, h, w]."""
    x = maps.flatten(1).softmax(1).unflatten(1, maps.shape[1:])
    return torch.stack([x[group].mean(0) for group in groups_of(divergences(maps), threshold)])


def matched_iou(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair wanted and found regions one to one for the greatest sum of IoU.

    wanted, found  bool [N, H, W] and [M, H, W]

    Returns the number of the found region of each wanted one, -1 for none, and its IoU, 0 without one: int64 and
    float64 [N].
    """
    a, b = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (wanted, found))
    both = a @ b.T
    iou = both / np.maximum(a.sum(1)[:, None] + b.sum(1) - both, 1)
    rows, columns = linear_sum_assignment(-iou.astype(np.float64))
    pair, value = np.full(len(wanted), -1), np.zeros(len(wanted))
    pair[rows], value[rows] = columns, iou[rows, columns]
    pair[value == 0] = -1
    return pair, value
