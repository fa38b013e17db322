"""Read image files that may be huge, damaged or hostile, as people see them."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from seg2any.layout.checks import LayoutError
from seg2any.layout.masks import cut
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
LOSSY = ("JPEG", "MPO", "WEBP")  # formats whose files may hold other colours than were drawn
LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82"}  # end of image; the empty chunk IEND
SAME_COLOR = 48  # RGB distance; JPEG noise and the ends of a soft edge stay within it
MOST_OFF_SHADE = 0.01  # of the pixels of a mask's picture


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
    most = limits()
    megapixels = f"more than {most.pixels >> 20} megapixels; scale it down"
    try:
        if isinstance(source, Path) and source.stat().st_size > most.file_bytes:
            raise ImageError(f"is larger than {most.file_bytes >> 20} MiB; scale it down")
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > most.pixels:
                raise ImageError(f"{image.width}x{image.height} is {megapixels}")
            if image.format != "MPO" and _has_more(image):  # whose others are for screens
                raise ImageError("has several pages or frames; save the one that counts as a picture of its own")
            yield image
    except (ImageError, UserError):
        raise
    except FileNotFoundError:
        raise ImageError("no such file; put it there, or correct its name") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"is {megapixels}") from error
    except Exception as error:  # on damaged files the decoders raise nearly every kind of exception
        raise ImageError(f"cannot be read as an image ({shown(str(error))}); {advice}") from error


def _has_more(image: Image.Image) -> bool:
    """Tell whether an image has several pages or frames, without counting those of a TIFF, which may be millions."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def load_image(path: Path) -> Image.Image:
    """Decode an image file of one page, turned as its EXIF says, so that it is as people see it.

    Raises LayoutError if the file is missing, damaged, too large or has several pages.
    """
    try:
        with _without_oddities(), opened_image(path, "save it again as PNG") as image:
            image.load()
            turned = upright(image)
            turned.format = image.format
            return turned
    except ImageError as error:
        raise LayoutError(f"{path}: {error}") from error


@contextmanager
def _without_oddities() -> Iterator[None]:
    """Ignore Pillow's warnings about harmless oddities; errors are raised.

    Only in the main thread, because `warnings.catch_warnings` acts on all threads at once, and two that overlap leave
    the warnings of one behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; one that says nothing, or nothing readable, is returned as it is."""
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image


def orientation(image: Image.Image) -> int:
    """Return the orientation of EXIF: 1 = as stored, 3 = upside down, from 5 on height and width change places."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises nearly every kind of exception, and the picture may still be whole
        return 1
    return found if found in range(1, 9) else 1


def decode_roughly(image: Image.Image) -> tuple[int, int]:
    """Decode an opened image to its end, to find damage, and return (H, W).

    Of a JPEG all bits are read, but only 1/64 of the pixels are computed.
    """
    width, height = image.size
    image.draft("L", (max(1, width // 8), max(1, height // 8)))
    image.load()
    return height, width


def has_end(path: Path, image_format: str) -> bool:
    """Tell whether a file ends as whole files of its format do; False for formats without such an end."""
    end = LAST_BYTES.get(image_format)
    if end is None:
        return False
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(end)))
        return file.read() == end


def read_colors(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Read colours, uint8 [H, W, 3], where they are visible, bool [H, W], and the name of the file's format.

    Visible is what is at least half opaque: a soft brush is cut in the middle of its edge. Palettes and grey are
    expanded to RGB. Raises LayoutError, also for more than 8 bits per channel.
    """
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        raise LayoutError(
            f"{path}: has over 8 bits per channel ({image.mode}); save the colour map with 8 bits per channel"
        )
    colors, alpha = _colors_of(path, image)
    return colors, alpha > 127, image.format or ""


def read_mask(path: Path) -> np.ndarray:
    """Read a mask from a picture of one page, bool [H, W], by the rules of `mask_of_image`.

    Raises LayoutError, also for a mask without a pixel.
    """
    mask = mask_of_image(str(path), load_image(path))
    if not mask.any():
        raise LayoutError(f"{path}: mask is entirely black; paint the region white, or remove it from the JSON")
    return mask


def mask_of_image(where: str, image: Image.Image) -> np.ndarray:
    """Cut a picture to a mask, bool [H, W], by the rules of `seg2any.layout.masks`.

    Colours count by their brightest channel, and have to be shades of one colour. Transparency is the mask if all that
    is visible has one colour, else it counts as black. Raises LayoutError, which starts with `where`.
    """
    is_deep = image.mode.startswith(("I", "F"))
    levels = np.asarray(image) if is_deep else _brightness(where, *_colors_of(where, image))
    return cut(where, levels[None], image.format in LOSSY)[0]


def _colors_of(where: str | Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [H, W, 3] and alpha uint8 [H, W], 255 = opaque."""
    try:
        if image.has_transparency_data:
            pixels = np.asarray(image.convert("RGBA"))
            return pixels[..., :3], pixels[..., 3]
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged palette or an unusual mode only shows up here
        raise LayoutError(f"{where}: cannot be converted to RGB ({shown(str(error))}); save it again as PNG") from error
    return pixels, np.full(pixels.shape[:2], 255, dtype=np.uint8)


def _brightness(where: str, colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W]: how much a pixel of a mask's picture is inside. Raises LayoutError for several colours."""
    visible = colors[alpha > 0]
    if (alpha < 255).any() and len(visible) and max(np.ptp(channel) for channel in visible.T) <= SAME_COLOR:
        return alpha
    if (alpha == 255).all() and not np.ptp(colors, axis=2).any():
        return colors[..., 0]  # grey, as nearly all masks
    faded = (colors * (alpha[..., None] / 255)).round()
    brightness = np.maximum(np.maximum(faded[..., 0], faded[..., 1]), faded[..., 2])  # max(axis=2) is slow
    shade = faded[brightness > brightness.max() / 2].mean(axis=0) if brightness.any() else np.ones(3)
    shade /= np.linalg.norm(shade)
    off_shade = np.linalg.norm(faded - (faded @ shade)[..., None] * shade, axis=2) > SAME_COLOR
    if off_shade.mean() > MOST_OFF_SHADE:
        hint = "" if (alpha == 255).all() else " under its transparency"
        raise LayoutError(f"{where}: has several colours{hint}, as labels or a photo; save a mask in black and white")
    return brightness.astype(np.uint8)
