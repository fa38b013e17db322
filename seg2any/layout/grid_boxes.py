"""Boxes on a grid of 1000 x 1000 that is stretched over the image, as native layout captions of other models have them.

A box is [top, left, bottom, right], whole numbers from 0 to 1000. It holds a region of any shape as its frame only.
Boxes of masks with sides below 1000 pixels come back to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seg2any.layout.checks import LayoutError
from seg2any.layout.entries import is_number
from seg2any.system.errors import shown

GRID = 1000


def grid_box(mask: np.ndarray) -> list[int]:
    """Frame a mask, bool [H, W] with a pixel."""
    edges = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]  # rows, columns
    starts = [_on_grid(int(found[0]), side) for found, side in zip(edges, mask.shape, strict=True)]
    stops = [_on_grid(int(found[-1]) + 1, side) for found, side in zip(edges, mask.shape, strict=True)]
    starts = [min(start, GRID - 1) for start in starts]
    stops = [max(stop, start + 1) for start, stop in zip(starts, stops, strict=True)]
    return [*starts, *stops]


def box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Draw a box as a mask bool `size`, of at least one pixel."""
    spans = []
    for start, stop, side in zip(box[:2], box[2:], size, strict=True):
        first = min(_on_pixels(start, side), side - 1)
        spans.append(slice(first, max(_on_pixels(stop, side), first + 1)))
    mask = np.zeros(size, bool)
    mask[tuple(spans)] = True
    return mask


def check_box(where: str, box: object) -> Sequence[float]:
    """Return a box of a caption. Raises LayoutError for anything else."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise LayoutError(f"{where} is {shown(box)}; write [top, left, bottom, right], whole numbers from 0 to {GRID}")
    top, left, bottom, right = box
    if min(box) < 0 or max(box) > GRID or bottom <= top or right <= left:
        raise LayoutError(
            f"{where} is {shown(box)}; write top before bottom and left before right, from 0 to {GRID}, whatever the "
            "size of the image"
        )
    if max(box) <= 1:
        raise LayoutError(f"{where} is {shown(box)}, in shares of the image; multiply the numbers by {GRID}")
    return box


def _on_grid(pixel: int, side: int) -> int:
    return math.floor(pixel * GRID / side + 0.5)


def _on_pixels(number: float, side: int) -> int:
    return math.floor(number * side / GRID + 0.5)
