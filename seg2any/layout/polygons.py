"""Draw masks stored as polygons, as in COCO."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutWarning

BEYOND = 1.0  # pixels by which points may lie outside of the image


def draw_polygons(where: str, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Draw the union of polygons [x, y, x, y, ...], in pixels from the upper left corner: bool [H, W].

    A pixel is inside if its centre is; where a polygon crosses itself, by the even-odd rule.

    Raises LayoutError for polygons without a pixel. Warns if points lie outside of the image.
    """
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        mask |= _draw(np.array(polygon, dtype=np.float64).reshape(-1, 2), size)
    points = np.concatenate([np.array(polygon, dtype=np.float64) for polygon in polygons]).reshape(-1, 2)
    image = f"{size[1]}x{size[0]}"
    if not mask.any():
        hint = "coordinates from 0 to 1 have to be multiplied by it" if points.max() <= 1 else "correct the points"
        raise LayoutError(f"{where}: segmentation has no pixel in an image of {image}; {hint}")
    if (points < -BEYOND).any() or (points > np.array(size[::-1]) + BEYOND).any():
        warnings.warn(
            f"{where}: segmentation reaches out of the image of {image} and is cut off; check width and height",
            LayoutWarning,
            stacklevel=4,
        )
    return mask


def _draw(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw one polygon, float [P, 2] of x and y: along each row its edges toggle inside and outside."""
    height, width = size
    toggles = np.zeros((height, width + 1), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = sorted((y0, y1))
        rows = np.arange(max(0, np.ceil(first - 0.5)), min(height, np.ceil(last - 0.5)), dtype=np.int64)
        if len(rows):  # a flat edge crosses no row's centre
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            toggles[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width]
