"""Measure the seam score: whether outlines of masks stand out, as in a collage.

The score compares colour steps (CIELAB) between neighbouring pixels across an outline with steps between neighbours on
one side of it, both within a few pixels of the outline:

    seam = (across - along) / (across + along)

0: the outlines cannot be seen. 1: nothing but the outlines can. Things in photographs have edges too, so the number
means something only beside that of real images with the same masks.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.evaluation.metrics.result import GENERATED, Result, mean
from seg2any.layout.contour import resize_masks

REACH = 6  # pixels on each side of an outline, in an image whose shorter side is 512


def seam_score(items: Iterable[Item], source: str = GENERATED) -> Result:
    """Average the score over the images of each sample, then over the samples.

    Images without an outline do not count. Raises UserError if no image has one.
    """
    scores: dict[str, list[float]] = {}
    for item in items:
        layout = layout_of(item, "seam score")
        score = seam(item.image, resize_masks(layout.masks, item.image.shape[:2]))
        if score is not None:
            scores.setdefault(item.key, []).append(score)
    per_sample = {key: float(np.mean(values)) for key, values in scores.items()}
    return mean("seam score", per_sample, source=source, better="lower")


def seam(image: np.ndarray, masks: np.ndarray) -> float | None:
    """Score an image uint8 [H, W, 3] with masks bool [N, H, W].

    None if no outline lies inside the image.
    """
    lab = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2LAB)
    across, along = [], []
    horizontal, vertical = _outlines(masks)
    near = _near(horizontal, vertical, max(1, round(REACH * min(image.shape[:2]) / 512)))
    for axis, outline in ((1, horizontal), (0, vertical)):
        steps = np.linalg.norm(np.diff(lab, axis=axis), axis=-1)
        pair_is_near = near[:, 1:] & near[:, :-1] if axis == 1 else near[1:] & near[:-1]
        across.append(steps[outline])
        along.append(steps[pair_is_near & ~outline])
    across, along = np.concatenate(across), np.concatenate(along)
    if not len(across) or not len(along):
        return None
    total = across.mean() + along.mean()
    return float((across.mean() - along.mean()) / total) if total > 0 else 0.0


def _outlines(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark pairs of horizontal [H, W - 1] and vertical [H - 1, W] neighbours at a mask's border."""
    return (masks[:, :, 1:] != masks[:, :, :-1]).any(0), (masks[:, 1:] != masks[:, :-1]).any(0)


def _near(horizontal: np.ndarray, vertical: np.ndarray, reach: int) -> np.ndarray:
    """Mark the pixels within `reach` pixels of an outline, on either side of it, bool [H, W]."""
    height, width = horizontal.shape[0], vertical.shape[1]
    touching = np.zeros((height, width), np.uint8)
    touching[:, 1:] |= horizontal
    touching[:, :-1] |= horizontal
    touching[1:] |= vertical
    touching[:-1] |= vertical
    return cv2.dilate(touching, np.ones((2 * reach - 1,) * 2, np.uint8)) > 0
