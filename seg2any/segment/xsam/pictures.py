"""Prepare pictures and masks for the two encoders; all resizing is Pillow's, on 8-bit pixels.

Shape suffixes: H W picture, S edge of SAM's square, V edge of SigLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seg2any.system.pretrained import imagenet_normalised

GREY = 127  # of the square around a picture
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Frame:
    """The place of a picture in SAM's square: its size, `size`, became `scaled`, at the upper left.

    The rest is filled with zeros.
    """

    size: Size
    scaled: Size
    side: int

    @classmethod
    def of(cls, size: Size, side: int) -> Frame:
        """Scale the longer edge to the square's."""
        ratio = side / max(size)
        return cls(size, tuple(int(edge * ratio + 0.5) for edge in size), side)


def seg_picture(image: np.ndarray, frame: Frame) -> Tensor:
    """Make SAM's picture [3, S, S] of uint8 [H, W, 3]."""
    scaled = resized(image, frame.scaled, Image.Resampling.BILINEAR)
    return _in_square(imagenet_normalised(scaled)[0], frame.side)


def seg_masks(masks: np.ndarray, frame: Frame) -> Tensor:
    """Make masks bool [N, S, S] in SAM's square of masks [N, H, W]."""
    scaled = [resized(mask.astype(np.uint8), frame.scaled, Image.Resampling.NEAREST).astype(bool) for mask in masks]
    return _in_square(torch.from_numpy(np.array(scaled).reshape(-1, *frame.scaled)), frame.side)


def visual_picture(image: np.ndarray, side: int) -> Tensor:
    """Make SigLIP's picture [3, V, V] of uint8 [H, W, 3], without keeping its proportions."""
    scaled = resized(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(scaled).permute(2, 0, 1).float() / 127.5 - 1


def padded_to_square(image: np.ndarray) -> np.ndarray:
    """Put a picture uint8 [H, W, 3] into the middle of a grey square."""
    edge = max(image.shape[:2])
    top, left = ((edge - side) // 2 for side in image.shape[:2])
    square = np.full((edge, edge, 3), GREY, np.uint8)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square


def jittered(image: np.ndarray, masks: np.ndarray, side: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale a picture uint8 [H, W, 3] and its masks [N, H, W], and cut what is over the square out of the middle.

    scale  of the square's edge that the longer edge gets
    """
    ratio = side * scale / max(image.shape[:2])
    size = tuple(max(1, int(edge * ratio + 0.5)) for edge in image.shape[:2])
    image = resized(image, size, Image.Resampling.BILINEAR)
    masks = [resized(mask.astype(np.uint8), size, Image.Resampling.NEAREST).astype(bool) for mask in masks]
    rows, columns = (slice(max(0, edge - side) // 2, max(0, edge - side) // 2 + side) for edge in size)
    return image[rows, columns], np.array(masks).reshape(-1, *size)[:, rows, columns]


def resized(pixels: np.ndarray, size: Size, method: Image.Resampling) -> np.ndarray:
    """Resize uint8 [H, W] or [H, W, 3]."""
    return np.array(Image.fromarray(pixels).resize(size[::-1], method))


def _in_square(x: Tensor, side: int) -> Tensor:
    """Fill [.., h, w] up with zeros at the right and the bottom."""
    return torch.nn.functional.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))
