"""Pictures from strangers: bounded in size, and every way of being damaged is one LayoutError.

A turn noted in EXIF is not followed, here or in `seg2any.data.pictures`, as in the published code: pixels count as they
are stored, of photos as of masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from seg2any.layout.checks import MAX_PIXELS, LayoutError
from seg2any.system.errors import UserError, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_MEGAPIXELS = MAX_PIXELS >> 20


class ImageError(Exception):
    """What is wrong with an image file, without its name, and what to do about it."""


@contextmanager
def opened_image(
    source: Path | BinaryIO, advice: str = "get it again", formats: Sequence[str] = FORMATS
) -> Iterator[Image.Image]:
    """Open an image that may be damaged, huge or hostile; nothing is decoded before its size is checked.

    Raises ImageError for whatever goes wrong in opening it or inside the block; a UserError from the block passes. Does
    not silence Pillow's warnings, because `warnings.catch_warnings` acts on all threads at once.
    """
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is more than {_MEGAPIXELS} megapixels; scale it down")
            yield image
    except (ImageError, UserError):
        raise
    except FileNotFoundError:
        raise ImageError("no such file; put it there, or correct its name") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {_MEGAPIXELS} megapixels; scale it down") from error
    except Exception as error:  # on damaged files the decoders raise nearly every kind of exception
        raise ImageError(f"cannot be read as an image ({shown(str(error))}); {advice}") from error


def load_image(path: Path) -> Image.Image:
    """Return the decoded first frame of an image file. Raises LayoutError if it is missing, damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about odd files; what matters is checked here
            with opened_image(path, "save it again as PNG") as image:
                image.load()
                return image
    except ImageError as error:
        raise LayoutError(f"{path}: {error}") from error


def decode_roughly(image: Image.Image) -> tuple[int, int]:
    """Decode an opened image to its end and return (H, W).

    Of a JPEG every bit is read, but only a 64th of the pixels is computed.
    """
    width, height = image.size
    image.draft("L", (max(1, width // 8), max(1, height // 8)))
    image.load()
    return height, width


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
