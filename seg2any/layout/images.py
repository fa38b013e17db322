"""Pictures from strangers: bounded in size, and every way of being damaged is one LayoutError.

A turn noted in EXIF is not followed, here or in `seg2any.data.pictures`, as in the published code: pixels count as they
are stored, of photos as of masks.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.layout.checks import MAX_PIXELS, LayoutError, check_mask_shape
from seg2any.system.errors import shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def load_image(path: Path) -> Image.Image:
    """The decoded first frame of an image file. Raises LayoutError if it is missing, damaged or too large."""
    try:
        if not path.is_file():
            raise LayoutError(f"{path}: image is missing; put it there, or correct the name in the JSON")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's about odd files; what matters is checked here
            with Image.open(path, formats=FORMATS) as image:
                check_mask_shape(str(path), (1, image.height, image.width))
                image.load()
                return image
    except LayoutError:
        raise
    except Image.DecompressionBombError as error:
        raise LayoutError(f"{path}: has more than {MAX_PIXELS >> 20} megapixels; scale it down") from error
    except Exception as error:  # on damaged files the decoders raise nearly every kind there is
        raise LayoutError(f"{path}: cannot be read as an image ({shown(str(error))}); save it again as PNG") from error


def read_colors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] colours and bool [H, W] where they are visible (alpha > 0). Palettes and grey are expanded."""
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        raise LayoutError(f"{path}: has {image.mode} pixels (over 8 bits); save the colour map with 8 bits per channel")
    try:
        if image.has_transparency_data:
            pixels = np.asarray(image.convert("RGBA"))
            return pixels[..., :3], pixels[..., 3] > 0
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged palette or an unusual mode only shows up here
        raise LayoutError(f"{path}: cannot be converted to RGB ({shown(str(error))}); save it again as PNG") from error
    return pixels, np.ones(pixels.shape[:2], dtype=bool)


def read_mask(path: Path) -> np.ndarray:
    """bool [H, W]: the pixels brighter than half of the brightest one, so 0/1, 0/255 and 16-bit masks all work."""
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        brightness = np.nan_to_num(np.asarray(image, dtype=np.float64))
    else:
        colors, visible = read_colors(path)
        brightness = np.where(visible, colors.max(axis=2), 0)
    mask = brightness > brightness.max() / 2
    if not mask.any():
        raise LayoutError(f"{path}: mask is black all over; paint its region white, or remove the region from the JSON")
    return mask
