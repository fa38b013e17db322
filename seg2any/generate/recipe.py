"""The recipe of an image, carried in the image: everything needed to make it again, and to know that it is finished."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from seg2any.layout.images import ImageError, opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

KEY = "seg2any"  # of the PNG text chunk
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that holds the recipe in JPEG and WebP
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# What may differ between two recipes of the same image.
CIRCUMSTANCES = ("versions", "device", "adapter.path", "model.path")


class BrokenImage(Exception):
    """A file that is not a whole image, as an interrupted copy or another program may leave it."""


def save_image(image: Image.Image, recipe: dict, path: Path, quality: int = 95) -> None:
    """Write a PNG, JPEG or WebP that carries `recipe`: whole or not at all. A PNG has no `quality`."""
    text = json.dumps(recipe)
    with atomic_write(path) as temporary:
        if path.suffix == ".png":
            info = PngInfo()
            info.add_text(KEY, text)
            image.save(temporary, pnginfo=info)
            return
        image.save(temporary, quality=quality, exif=_exif(text, path))


def check_recipe_fits(recipe: dict, path: Path) -> None:
    """Raise UserError if the format of `path` has no room for `recipe`: to be known before the image is made."""
    if path.suffix != ".png":
        _exif(json.dumps(recipe), path)


def read_recipe(path: Path) -> dict | None:
    """The recipe in an image, or None if it carries none. Decodes all of it: raises BrokenImage if it is not whole."""
    try:
        with opened_image(path) as image:
            image.load()
            text = image.info.get(KEY) if image.format == "PNG" else image.getexif().get(IMAGE_DESCRIPTION)
            if image.format == "PNG" and not path.read_bytes().endswith(PNG_END):
                raise BrokenImage(path)
    except ImageError as error:
        raise BrokenImage(path) from error
    try:
        recipe = json.loads(text)
    except (TypeError, ValueError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _exif(text: str, path: Path) -> Image.Exif:
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = text
    kind = Image.registered_extensions()[path.suffix]
    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), kind, exif=exif)  # the writer of the format knows its bounds
    except ValueError as error:
        raise UserError(f"{path}: the captions are too long for a recipe in this format; use --format png") from error
    return exif


def differences(old: dict, new: dict) -> list[str]:
    """Names of what differs between two recipes, such as `seed` or `settings.cond_scale_factor`."""
    new = json.loads(json.dumps(new))  # tuples become lists, as they have in a recipe that was read
    return sorted(_differences(old, new, ""))


def _differences(old: object, new: object, name: str) -> list[str]:
    if name in CIRCUMSTANCES:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    names = {key: f"{name}.{key}" if name else key for key in {*old, *new}}
    return [found for key, inner in names.items() for found in _differences(old.get(key), new.get(key), inner)]
