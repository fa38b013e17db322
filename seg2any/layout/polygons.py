"""Draw masks stored as polygons, as in COCO."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.system.limits import limits

EDGE_WORK = 16  # pixels, in time
BEYOND = 1.0  # pixels by which points may lie outside of the image


def draw_polygons(where: str, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Draw the union of polygons [x, y, x, y, ...], in pixels from the upper left corner: bool [H, W].

    A pixel is inside if its centre is; where a polygon crosses itself, by the even-odd rule.

    Raises LayoutError for polygons without a pixel. Warns if points lie outside of the image.
    """
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        _draw(mask, np.array(polygon, dtype=np.float64).reshape(-1, 2))
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


def check_work(where: str, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
    """Raise LayoutError if drawing all polygons of a layout in an image of size (H, W) would take long."""
    most = limits()
    if (points := sum(map(len, polygons)) // 2) > most.points:
        raise LayoutError(f"{where}: polygons have {points} points, more than {most.points}; simplify them")
    work = sum(_work(np.array(polygon, dtype=np.float64).reshape(-1, 2), size) for polygon in polygons)
    if work > most.mask_bytes:
        raise LayoutError(f"{where}: polygons cover the image too often; store the masks as run lengths")


def _work(points: np.ndarray, size: tuple[int, int]) -> int:
    """Return how many pixels are touched by drawing float [P, 2]; one row of an edge counts as EDGE_WORK."""
    top, bottom, left, right = _bounds(points, size)
    rows = points[:, 1].clip(0, size[0])
    return (bottom - top) * (right - left) + EDGE_WORK * int(np.abs(rows - np.roll(rows, -1)).sum())


def _bounds(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the first and the end of the rows, then of the columns, that hold float [P, 2] of x and y."""
    (left, top), (right, bottom) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    ends = zip((top, bottom, left, right), (size[0], size[0], size[1], size[1]), strict=True)
    return tuple(int(min(max(end, 0), most)) for end, most in ends)


def _draw(mask: np.ndarray, points: np.ndarray) -> None:
    """Add one polygon, float [P, 2] of x and y, to a mask: along each row its edges toggle inside and outside."""
    top, bottom, left, right = _bounds(points, mask.shape)
    toggles = np.zeros((bottom - top, right - left + 1), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = sorted((y0, y1))
        rows = np.arange(max(top, np.ceil(first - 0.5)), min(bottom, np.ceil(last - 0.5)), dtype=np.int64)
        if len(rows):  # a flat edge crosses no row's centre
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            toggles[rows - top, np.clip(np.ceil(crossings - 0.5), left, right).astype(np.int64) - left] ^= True
    mask[top:bottom, left:right] |= np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
