"""Overlap of masks, of their areas and of their outlines; size and thinness of a mask."""

from __future__ import annotations

import math

import cv2
import numpy as np

from seg2any.layout.overlap import iou

SMALL, LARGE = (1 / 16) ** 2, (3 / 16) ** 2  # of the image's area: COCO's 32 and 96 pixels on an image of 512
THIN = 1 / 32  # of the image's shorter side: a token of 16 pixels on an image of 512
SIZES = ("small", "medium", "large")
BAND = 0.02  # of the image's diagonal, as Boundary IoU (arXiv 2103.16562) is published


def boundary_iou(a: np.ndarray, b: np.ndarray, width: int) -> float:
    """Compute the IoU of bands of `width` pixels inside the outlines of masks bool [H, W]."""
    return iou(boundary(a, width), boundary(b, width))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Keep the pixels of a mask bool [H, W] within `width` pixels of its outline.

    The image's border counts as an outline.
    """
    return mask & ~shift_border(mask, -width)


def band_width(size: tuple[int, int]) -> int:
    """Return the width in pixels of the published Boundary IoU's band in an image of (H, W)."""
    return max(1, round(BAND * math.hypot(*size)))


def shift_border(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow the mask bool [H, W] by `pixels`, or shrink it if negative.

    Outside the image counts as outside the mask.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
    if pixels >= 0:
        return cv2.dilate(mask.astype(np.uint8), kernel) > 0
    return cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def size_class(mask: np.ndarray) -> str:
    """Name the size of a mask bool [H, W], one of SIZES, by its share of the image."""
    share = mask.mean()
    return SIZES[0] if share < SMALL else SIZES[1] if share < LARGE else SIZES[2]


def is_thin(mask: np.ndarray) -> bool:
    """Say whether no circle as wide as THIN of the shorter side fits into a mask bool [H, W]."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The distance is to the centre of the nearest outside pixel, half a pixel beyond the outline.
    return 2 * (float(inside.max()) - 0.5) < THIN * min(mask.shape)
