"""Show one region of a photo to a model: outlined in the whole, or cut out with its surroundings dimmed."""

from __future__ import annotations

import cv2
import numpy as np

from seg2any.layout.contour import outline, resize_masks

MAGENTA = (255, 0, 255)
WHOLE_SIDE, CUT_SIDE = 1024, 448  # pixels; longest side of a whole image (at most) and of a cut-out (exactly)
DIMMED = 0.25  # share of the light that is left outside the region
BOX_MARGIN = 0.1  # of the sides of a box, where a region is shown with its surroundings


def outlined(image: np.ndarray, mask: np.ndarray, side: int = WHOLE_SIDE) -> np.ndarray:
    """Draw the outline of a mask bool [H, W]; the longest side becomes at most `side`."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = round(height * scale), round(width * scale)
    if scale < 1:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        mask = resize_masks(mask[None], size)[0]
    thickness = max(2, max(size) // 256)
    line = cv2.dilate(outline(mask[None]), np.ones((thickness, thickness), np.uint8)) > 0
    return np.where(line[..., None], np.uint8(MAGENTA), image)


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut out the box around a mask bool [H, W] with a margin, dimmed outside the mask.

    Its longest side becomes CUT_SIDE.
    """
    box = box_with_margin(mask)
    shown = np.where(mask[box][..., None], image[box], (image[box] * DIMMED).astype(np.uint8))
    scale = CUT_SIDE / max(shown.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in shown.shape[1::-1])
    return cv2.resize(shown, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def box_with_margin(mask: np.ndarray, share: float = BOX_MARGIN) -> tuple[slice, slice]:
    """Return rows and columns of the box around a mask bool [H, W] that is not empty.

    It has a margin of a share of its sides, as far as the image reaches.
    """
    spans = []
    for inside, side in zip((mask.any(1), mask.any(0)), mask.shape, strict=True):
        first, last = np.flatnonzero(inside)[[0, -1]]
        margin = round(share * (last + 1 - first))
        spans.append(slice(max(0, first - margin), min(side, last + 1 + margin)))
    return spans[0], spans[1]
