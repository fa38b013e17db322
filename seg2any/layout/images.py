"""Read image files that may be huge, damaged or hostile.

Rotation noted in EXIF is ignored, for masks here and for photos in `seg2any.data.pictures`, as in the published code.
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
    """An image file that cannot be used; the message has reason and fix, but not the file."""


@contextmanager
def opened_image(
    source: Path | BinaryIO, advice: str = "get it again", formats: Sequence[str] = FORMATS
) -> Iterator[Image.Image]:
    """Open an image, and check its size before anything is decoded.

    advice:  fix to suggest for a damaged image

    Raises ImageError for any error in opening it or inside the `with` block, except a UserError, which passes through.
    Pillow's warnings are not silenced, because `warnings.catch_warnings` acts on all threads at once.
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
        raise ImageError(f"is more than {_MEGAPIXELS} megapixels; scale it down") from error
    except Exception as error:  # on damaged files the decoders raise nearly every kind of exception
        raise ImageError(f"cannot be read as an image ({shown(str(error))}); {advice}") from error


def load_image(path: Path) -> Image.Image:
    """Decode the first frame of an image file.

    Raises LayoutError if the file is missing, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about harmless oddities; errors are raised here
            with opened_image(path, "save it again as PNG") as image:
                image.load()
                return image
    except ImageError as error:
        raise LayoutError(f"{path}: {error}") from error


def decode_roughly(image: Image.Image) -> tuple[int, int]:
    """Decode an opened image to its end, to find damage, and return (H, W).

    Of a JPEG all bits are read, but only 1/64 of the pixels are computed.
    """
    width, height = image.size
    image.draft("L", (max(1, width // 8), max(1, height // 8)))
    image.load()
    return height, width


def read_colors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read colours, uint8 [H, W, 3], and where they are visible (alpha > 0), bool [H, W].

    Palettes and grey are expanded to RGB. Raises LayoutError, also for more than 8 bits per channel.
    """
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        raise LayoutError(
            f"{path}: has over 8 bits per channel ({image.mode}); save the colour map with 8 bits per channel"
        )
    try:
        if image.has_transparency_data:
            pixels = np.asarray(image.convert("RGBA"))
            return pixels[..., :3], pixels[..., 3] > 0
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged palette or an unusual mode only shows up here
        raise LayoutError(f"{path}: cannot be converted to RGB ({shown(str(error))}); save it again as PNG") from error
    return pixels, np.ones(pixels.shape[:2], dtype=bool)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask, bool [H, W]: the pixels brighter than half of the brightest pixel.

    So masks of 0 and 1, 0 and 255, and 16 bits all work. Raises LayoutError, also for a mask that is all black.
    """
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        brightness = np.nan_to_num(np.asarray(image, dtype=np.float64))
    else:
        colors, visible = read_colors(path)
        brightness = np.where(visible, colors.max(axis=2), 0)
    mask = brightness > brightness.max() / 2
    if not mask.any():
        raise LayoutError(f"{path}: mask is entirely black; paint the region white, or remove it from the JSON")
    return mask
