"""Draw the Entity Contour Map (paper section 3.2) and find its non-empty tokens."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize masks bool [N, H, W] to `size` (h, w), taking the nearest source pixel centre.

    Equal to torch's nearest-exact. PIL NEAREST rounds some ties differently; torch nearest and cv2 INTER_NEAREST are
    other rules.
    """
    rows = nearest_exact(masks.shape[1], size[0])
    columns = nearest_exact(masks.shape[2], size[1])
    return masks[:, rows[:, None], columns]


def outline(masks: np.ndarray) -> np.ndarray:
    """Draw the outlines of masks bool [N, H, W]: uint8 [H, W], 255 on an outline, else 0.

    An outline has the pixels of a mask with a 4-neighbour outside the mask, or outside the image. All N outlines are
    drawn, also where another mask lies on top.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    contour = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:
        filled = mask.astype(np.uint8)
        contour |= filled - cv2.erode(filled, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return contour * 255


def condition_image(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw the outlines of masks bool [N, H, W] at `size` (h, w): uint8 [h, w].

    size: of the image, divided by cond_scale_factor

    They are drawn at the masks' own size, then resized with PIL BILINEAR. Shrinking antialiases: lines turn grey, but
    none is lost.
    """
    height, width = size
    return np.asarray(Image.fromarray(outline(masks)).resize((width, height), Image.Resampling.BILINEAR))


def kept_tokens(image: np.ndarray, patch: int) -> np.ndarray:
    """Find condition tokens that are not all black: uint8 [h, w] -> bool [h/patch, w/patch].

    patch: pixels per token side; VAE scale factor times the transformer's 2x2 packing, 16 for FLUX.1

    The published code requires a non-zero sum of pixels in [-1, 1], in which values 1 and 254 cancel; on real contours
    both rules agree.
    """
    h, w = image.shape[0] // patch, image.shape[1] // patch
    patches = image[: h * patch, : w * patch].reshape(h, patch, w, patch)
    return patches.any(axis=(1, 3))


def nearest_exact(source: int, target: int) -> np.ndarray:
    """Compute the source index of each target pixel, int [target].

    floor((i + 0.5) * source / target), in float32 as torch rounds it
    """
    scale = np.float32(source) / np.float32(target)
    index = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    return np.minimum(index, source - 1)
