"""Count the colours of a picture, and tell which of them fill areas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from seg2any.layout.checks import check_colors
from seg2any.layout.images import LOSSY, SAME_COLOR, read_colors

INVISIBLE = 1 << 24  # sorts after all 24-bit colours
NEAR = float(SAME_COLOR)  # RGB distance of a stray from its colour at most, see also `reach`
NOISE = 8.0  # RGB distance between a flat colour and the same colour after JPEG
CLEAN = 0.001  # of the pixels have colours that fill no area, at most, in a picture without noise
SQUARE = np.ones((3, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Palette:
    """The K different colours of an image.

    rgb       int64 [K, 3]
    pixels    int64 [K], number of pixels of each colour
    index     int [H, W], colour of each pixel, -1 = invisible
    is_lossy  the file is a JPEG or WebP
    """

    rgb: np.ndarray
    pixels: np.ndarray
    index: np.ndarray
    is_lossy: bool = False

    @cached_property
    def is_black(self) -> np.ndarray:
        """Tell which colour is black, bool [K]."""
        return (self.rgb == 0).all(axis=1)

    def where(self, chosen: np.ndarray) -> np.ndarray:
        """Find the pixels, bool [H, W], whose colours are `chosen`, bool [K]."""
        return np.append(chosen, False)[self.index]  # index -1, invisible, reads the last entry

    @cached_property
    def filled(self) -> np.ndarray:
        """Tell which colours, bool [K], fill a 3x3 square, which the border may cut off."""
        index = self.index.astype(np.float32)
        uniform = (cv2.erode(index, SQUARE) == cv2.dilate(index, SQUARE)) & (self.index >= 0)
        return np.bincount(self.index[uniform], minlength=len(self.rgb)) > 0

    @property
    def is_noisy(self) -> bool:
        """Tell whether more pixels than in a clean picture have colours that fill no area."""
        return bool(self.pixels[~self.filled].sum() > CLEAN * self.index.size)

    def border(self) -> np.ndarray:
        """Return int [P], the colour of each pixel of the image's border, -1 = invisible."""
        index = self.index
        return np.concatenate([index[0], index[-1], index[1:-1, 0], index[1:-1, -1]])


def read_palette(path: Path) -> Palette:
    """Read the colours of a picture of 8 bits per channel. Raises LayoutError."""
    colors, visible, kind = read_colors(path)
    red, green, blue = colors.astype(np.int32).reshape(-1, 3).T
    packed = np.where(visible.reshape(-1), red << 16 | green << 8 | blue, INVISIBLE)
    # Sorting takes most of the time, and a colour map has far fewer runs of equal pixels than pixels.
    starts = np.append(0, np.flatnonzero(packed[1:] != packed[:-1]) + 1)
    lengths = np.diff(starts, append=len(packed))
    values, index_of_run = np.unique(packed[starts], return_inverse=True)
    check_colors(str(path), len(values))
    pixels = np.bincount(index_of_run, weights=lengths).astype(np.int64)
    index = np.repeat(index_of_run, lengths).reshape(visible.shape)
    if values[-1] == INVISIBLE:
        values, pixels = values[:-1], pixels[:-1]
        index[index == len(values)] = -1
    rgb = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int64)
    return Palette(rgb, pixels, index, kind in LOSSY)


def nearest(rgb: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest anchor of each colour: index int [K], Euclidean distance float [K]."""
    best, squared = np.zeros(len(rgb), dtype=np.int64), np.full(len(rgb), np.inf)
    for n, anchor in enumerate(anchors):
        candidate = ((rgb - anchor) ** 2).sum(axis=1)
        closer = candidate < squared
        best[closer], squared[closer] = n, candidate[closer]
    return best, np.sqrt(squared)


def fills_area(pixels: np.ndarray) -> bool:
    """Tell whether there is a 3x3 square within `pixels`, bool [H, W]; the border may cut it off."""
    return bool(cv2.erode(pixels.astype(np.uint8), SQUARE).any())
