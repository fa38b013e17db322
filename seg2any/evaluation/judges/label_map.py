"""The protocol of judges that classify every pixel, and how images are scaled for them."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

SHORT, LONG = 512, 2048  # pixels; images are scaled to the largest size within both, keeping their aspect


class LabelJudge(Protocol):
    """A network that sees one of `classes` classes in every pixel."""

    classes: int

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Classify every pixel: uint8 [H, W, 3] -> class indices [H, W]; `classes` where the judge sees none."""


def rescaled(image: np.ndarray) -> np.ndarray:
    """Scale uint8 [H, W, 3] until its shorter side is SHORT or its longer side LONG (bilinear)."""
    height, width = image.shape[:2]
    scale = min(SHORT / min(height, width), LONG / max(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    return image if size == (width, height) else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
