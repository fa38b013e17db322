"""Watershed from points (Meyer 1992) as a segmenter: a baseline that knows nothing but the photo's edges."""

from __future__ import annotations

import cv2
import numpy as np

from seg2any.layout import Layout
from seg2any.segment.segmenter import Prompt

METHOD = "watershed"
FLAT = 0.05  # of the greatest gradient: pixels below belong to basins that need no point


class WatershedSegmenter:
    """Floods the photo's gradient from a region's points and from every other flat area.

    Masks have the size of the image; there are no scores.
    """

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the region of each entry's points in an image uint8 [H, W, 3]. Raises UserError for other prompts."""
        prompt.check(METHOD, ("points",))
        kernel = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        gradient = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, kernel).max(2)
        _, basins = cv2.connectedComponents((gradient <= FLAT * max(1, gradient.max())).astype(np.uint8))
        height, width = image.shape[:2]
        masks = np.zeros((len(prompt.points), height, width), bool)
        for mask, points in zip(masks, prompt.points, strict=True):
            markers = basins.astype(np.int32)
            own = int(markers.max()) + 1
            for x, y, label in points:
                if label == 1:
                    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
                    basin = basins[row, column]
                    markers[(basins == basin) if basin else (row, column)] = own
            mask[:] = cv2.watershed(image, markers) == own
        return Layout(masks, prompt.captions(), source=METHOD, overlap="share")
