"""Read photos and label maps into arrays; any fault of a file is one SampleError."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from seg2any.data.dataset import SampleError
from seg2any.layout.images import ImageError, decode_roughly, has_end, opened_image, orientation, upright
from seg2any.system.errors import UserError
from seg2any.system.weights import file_digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_photo(path: Path) -> np.ndarray:
    """Read a photo as people see it, uint8 [H, W, 3]: turned as its EXIF says, in sRGB, on white if transparent."""
    with _opened(path) as image:
        return _flat(path, _in_srgb(upright(image)))


def check_photo(path: Path) -> tuple[int, int]:
    """Return (H, W) of a photo as people see it. Raises SampleError unless the file is whole."""
    with _opened(path) as image:
        is_on_its_side = orientation(image) >= 5
        size = _check(path, image)
        return size[::-1] if is_on_its_side else size


def photo_digest(path: Path) -> str:
    """Return a digest of a photo as `read_photo` sees it.

    It is that of the file where people see the pixels that are stored, and another one elsewhere.
    """
    return file_digest(path) + ("" if is_seen_as_stored(path) else "-seen")


def is_seen_as_stored(path: Path) -> bool:
    """Tell whether people see the pixels that are stored: `read_photo` and `read_stored_photo` give the same."""
    with _opened(path) as image:
        is_plain = orientation(image) == 1 and not image.has_transparency_data and "icc_profile" not in image.info
        return is_plain and not image.mode.startswith("I;16")


def read_stored_photo(path: Path) -> np.ndarray:
    """Read a photo's pixels as stored, uint8 [H, W, 3], as the published code does; on white if transparent.

    EXIF turns and colour profiles are not followed.
    """
    with _opened(path) as image:
        return _flat(path, image)


def check_stored_photo(path: Path) -> tuple[int, int]:
    """Return (H, W) of a photo as stored. Raises SampleError unless the file is whole.

    Warns, once per folder, of photos that EXIF turns.
    """
    with _opened(path) as image:
        if orientation(image) != 1:
            text = "EXIF turns some photos, but pixels count as stored, as those of their label maps, as published"
            warnings.warn(f"{path.parent}: {text}", stacklevel=2)
        return _check(path, image)


def read_label_map(path: Path) -> np.ndarray:
    """Read a grey picture's values or a palette picture's indices, uint8 [H, W]."""
    with _opened(path) as image:
        if image.mode not in ("L", "P"):
            raise SampleError(f"{path}: it has {image.mode} pixels; a label map is an 8-bit grey or palette PNG")
        if image.format == "JPEG":
            raise SampleError(f"{path}: JPEG changes labels; get the label map as PNG")
        labels = np.asarray(image)
        _refuse_grey_palette(path, image, labels)
        return labels


def _refuse_grey_palette(path: Path, image: Image.Image, labels: np.ndarray) -> None:
    """Raise SampleError for a grey palette in another order than its indices.

    Programs that shrink PNGs store few greys as a palette in any order; then the labels are its greys, not its indices.
    A palette of colours, or of every index's own grey, only makes labels visible.
    """
    if image.mode != "P":
        return
    colors = np.reshape(image.getpalette("RGB"), (-1, 3))
    used = np.flatnonzero(image.histogram()[: len(colors)])
    if (colors == colors[:, :1]).all() and (colors[used, 0] != used).any():
        raise SampleError(f"{path}: its grey palette is in another order than its labels; save it as 8-bit grey")


def _check(path: Path, image: Image.Image) -> tuple[int, int]:
    """Return (H, W) as stored. Raises SampleError unless the file is whole.

    A JPEG or PNG that ends with its format's last marker is not decoded, which would take ten times as long: all that
    a decoder reports of a JPEG's damage is a missing end. Any other file is decoded.
    """
    _refuse_deep(path, image)
    return image.size[::-1] if has_end(path, image.format) else decode_roughly(image)


def _refuse_deep(path: Path, image: Image.Image) -> None:
    """Raise SampleError for over 16 bits per channel: nothing says which number is white."""
    if image.mode in ("I", "F"):
        raise SampleError(f"{path}: it has {image.mode} pixels (over 16 bits); save the photo with 8 bits per channel")


def _flat(path: Path, image: Image.Image) -> np.ndarray:
    """Convert to uint8 [H, W, 3]: 16 bits are scaled, and what is transparent is laid on white."""
    _refuse_deep(path, image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    return np.asarray(image.convert("RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert colours from the image's own profile, if it has one that can be read, to sRGB."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(("I", "F")):
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colors = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        converted = ImageCms.profileToProfile(colors, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one of another kind of pixels: viewers skip it, too
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, not yet decoded. Raises SampleError for whatever goes wrong in the block."""
    try:
        with opened_image(path) as image:
            yield image
    except ImageError as error:
        raise SampleError(f"{path}: {error}") from None


def pictures_by_stem(name: str, folder: Path) -> dict[str, Path]:
    """Find the pictures in a folder of the data set `name`: name without suffix -> path, sorted.

    Raises UserError for an empty folder, two pictures of one name, or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"data set {name}: no folder {folder}; unpack the data there, or correct the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if not is_utf8(path.name):
                raise UserError(f"{ascii(str(path))}: the name is not UTF-8; rename it")
            if path.stem in found:
                raise UserError(f"{path}: {found[path.stem].name} has the same name; remove or move one of them")
            found[path.stem] = path
    if not found:
        raise UserError(f"data set {name}: {folder} holds no picture; correct the path")
    return found


def is_utf8(name: str) -> bool:
    """Tell whether a file name is UTF-8: Python shows other bytes as lone surrogates."""
    return name == name.encode(errors="ignore").decode()


def sizes_differ(path: Path, size: tuple[int, int], photo: Path, photo_size: tuple[int, int], turns: str) -> str:
    """Describe masks and a photo of different sizes (H, W).

    turns  what to say of EXIF, in case one of them is on its side
    """
    hint = f"; {turns}" if size == photo_size[::-1] else ""
    return f"{path}: it is {in_words(size)}, but {photo} is {in_words(photo_size)}{hint}"


def in_words(size: tuple[int, int]) -> str:
    """Format (H, W) as WxH."""
    return f"{size[1]}x{size[0]}"
