"""Find the region of a point in painted colours (gen2seg, arXiv 2505.15263).

    colours --> mean colour around the point --> similarity of every pixel --> smoothed along edges --> threshold

Shapes: colours uint8 [H, W, 3], similarity float32 [H, W] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seg2any.segment.coloring.bilateral import joint_bilateral

TINY = 1e-6  # added to published divisors
GRID = 5  # points per row and column of a box


def clipped_similarity(distance: Tensor) -> Tensor:
    """Compute min(1, 1 / distance), the formula of the paper: a colour that is alike counts as equal."""
    return 1 / distance.clamp_min(1)


def published_similarity(distance: Tensor) -> Tensor:
    """Compute 1 / distance and spread it over 0..1, as the published code does; the most similar pixel sets the scale.

    So a picture of one colour has no similar pixel at all.
    """
    s = 1 / (distance + TINY)
    return (s - s.min()) / (s.max() - s.min() + TINY)


SIMILARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped": clipped_similarity,
    "published": published_similarity,
}


@dataclass(frozen=True)
class PointSettings:
    """Settings of the search around points; the defaults are the published ones.

    sigma      of the Gaussian around a point, as a share of the image's width and height
    threshold  of 255 times the similarity; the region lies above
    similarity a key of SIMILARITIES
    diameter   of the smoothing, in pixels; None: without
    spread     standard deviation of the smoothing, both in grey levels and in pixels
    """

    sigma: float = 0.01
    threshold: float = 3
    similarity: str = "clipped"
    diameter: int | None = 9
    spread: float = 75


def gaussian(size: tuple[int, int], x: float, y: float, sigma: float) -> Tensor:
    """Compute exp(-d^2 / 2 sigma^2) around a point for (H, W) pixels: float32 [H, W].

    x, y  of the point; both axes count from 0 at the first pixel to 1 at the last
    """
    rows, columns = (torch.linspace(0, 1, edge) for edge in size)
    weights = (-((columns - x).square() + (rows - y)[:, None].square()) / (2 * sigma**2)).exp()
    return ((2 * weights - 1) + 1) / 2  # as published: what is below 1e-7 rounds to 0


def color_around(colors: Tensor, weights: Tensor) -> Tensor:
    """Average colours [H, W, 3] with weights [H, W]: float32 [3]."""
    return (colors * weights[..., None]).sum((0, 1)) / (weights.sum() + TINY)


def similarity_to(colors: np.ndarray, x: int, y: int, settings: PointSettings) -> np.ndarray:
    """Compute how similar every pixel is to the colour around pixel (x, y), before smoothing."""
    height, width = colors.shape[:2]
    around = gaussian((height, width), x / max(width - 1, 1), y / max(height - 1, 1), settings.sigma)
    numbers = torch.from_numpy(colors.astype(np.float32))
    distance = torch.linalg.norm(numbers - color_around(numbers, around), dim=2)
    return SIMILARITIES[settings.similarity](distance).numpy()


def smoothed(similarity: np.ndarray, colors: np.ndarray, settings: PointSettings) -> np.ndarray:
    """Smooth a similarity along the edges of the colours, in 255 steps."""
    if settings.diameter is None:
        return similarity
    levels = (similarity * 255).clip(0, 255).astype(np.uint8)
    spread = settings.spread
    return joint_bilateral(colors, levels, settings.diameter, spread, spread).astype(np.float32) / 255


def region_of_points(
    colors: np.ndarray, inside: Sequence[tuple[int, int]], outside: Sequence[tuple[int, int]], settings: PointSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Find the region of one or more pixels (x, y).

    inside   pixels of the region, at least one: the greatest of their similarities counts
    outside  pixels beside it: what is more similar to one of these is not in the region

    Returns the mask bool [H, W] and the similarity.
    """
    to_inside = _greatest(colors, inside, settings)
    mask = to_inside * 255 > settings.threshold
    if outside:
        mask &= to_inside > _greatest(colors, outside, settings)
    return mask, to_inside


def region_of_box(
    colors: np.ndarray, box: tuple[float, float, float, float], settings: PointSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Find the region that fills a box best: of points spread over it, the one whose region has a box most like it.

    box  left, top, right, bottom in pixels

    Returns the mask bool [H, W] and the similarity.
    """
    height, width = colors.shape[:2]
    shares, quick = (np.arange(GRID) + 0.5) / GRID, replace(settings, diameter=None)
    columns = np.unique((box[0] + shares * (box[2] - box[0])).astype(int).clip(0, width - 1))
    rows = np.unique((box[1] + shares * (box[3] - box[1])).astype(int).clip(0, height - 1))
    points = [(int(x), int(y)) for y in rows for x in columns]
    fits = [_overlap(_box_of(region_of_points(colors, [point], [], quick)[0]), box) for point in points]
    return region_of_points(colors, [points[int(np.argmax(fits))]], [], settings)


def _box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the IoU of two boxes."""
    sides = [max(0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])) for axis in (0, 1)]
    both = sides[0] * sides[1]
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / max(areas - both, 1e-9)


def _greatest(colors: np.ndarray, points: Sequence[tuple[int, int]], settings: PointSettings) -> np.ndarray:
    maps = [smoothed(similarity_to(colors, x, y, settings), colors, settings) for x, y in points]
    return np.maximum.reduce(maps)
