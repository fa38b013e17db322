"""The Entity Contour Map (paper section 3.2): the shape of every entity as thin lines, and which tokens hold any."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [N, H, W] -> bool [N, h, w], each pixel from the nearest source pixel centre ("nearest-exact").

    Equal to torch nearest-exact. PIL NEAREST rounds some ties otherwise; torch nearest and cv2 INTER_NEAREST differ.
    """
    rows = nearest_exact(masks.shape[1], size[0])
    columns = nearest_exact(masks.shape[2], size[1])
    return masks[:, rows[:, None], columns]


def outline(masks: np.ndarray) -> np.ndarray:
    """bool [N, H, W] -> uint8 [H, W], 255 where a mask has a pixel with a 4-neighbour outside it, else 0.

    Outside the image is outside the mask. The union over the N masks; overlaps hide nothing.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    contour = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:
        filled = mask.astype(np.uint8)
        contour |= filled - cv2.erode(filled, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return contour * 255


def condition_image(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [N, H, W] -> uint8 [h, w]: the outline at the masks' own size, brought to `size` with PIL BILINEAR.

    `size` is the image's, divided by cond_scale_factor. Shrinking antialiases, so lines become grey, never lost.
    """
    height, width = size
    return np.asarray(Image.fromarray(outline(masks)).resize((width, height), Image.Resampling.BILINEAR))


def kept_tokens(image: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [h, w] -> bool [h // patch, w // patch]: which condition tokens hold any pixel that is not black.

    patch    pixels per token side: VAE scale factor times the transformer's 2x2 packing, 16 for FLUX.1

    The published code asks for a non-zero sum of signed pixels, which 1 and 254 cancel; on real contours both agree.
    """
    h, w = image.shape[0] // patch, image.shape[1] // patch
    patches = image[: h * patch, : w * patch].reshape(h, patch, w, patch)
    return patches.any(axis=(1, 3))


def nearest_exact(source: int, target: int) -> np.ndarray:
    """Source index of each of `target` pixels: floor((i + 0.5) * source / target) in float32, as torch rounds it."""
    scale = np.float32(source) / np.float32(target)
    index = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    return np.minimum(index, source - 1)
