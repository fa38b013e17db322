"""Decide which of several overlapping masks a pixel belongs to.

hide   to the topmost only: what is listed later lies on top, as people draw
share  to all: masks without an order, as in COCO, SA-1B and the published code
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

OVERLAPS = ("hide", "share")
ALIKE = 0.9  # intersection over union from which two regions count as one; far above that of a part and its whole


def shared_pixels(masks: np.ndarray) -> np.ndarray:
    """Find the pixels in two or more masks: bool [N, H, W] -> bool [H, W]."""
    once, twice = np.zeros((2, *masks.shape[1:]), dtype=bool)
    for mask in masks:
        twice |= once & mask
        once |= mask
    return twice


def visible_masks(masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Subtract from each mask all later ones: bool [N, H, W] -> bool [N, H, W]."""
    visible = np.array(masks, dtype=bool)
    above = np.zeros(visible.shape[1:], dtype=bool)
    for mask in visible[::-1]:
        mask &= ~above
        above |= mask
    return visible


def alike_masks(masks: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of masks, bool [N, H, W], with almost the same pixels.

    Yields (i, j, intersection over union) with i < j and a ratio of at least ALIKE. Empty masks are like no other.
    """
    areas = masks.sum((1, 2))
    for j in range(len(masks)):
        for i in range(j):
            least, most = sorted((int(areas[i]), int(areas[j])))
            if least == 0 or least < ALIKE * most:  # then no position of the two reaches the ratio
                continue
            both = int((masks[i] & masks[j]).sum())
            if (ratio := both / (least + most - both)) >= ALIKE:
                yield i, j, ratio


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the intersection over union of two masks bool [H, W]; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
