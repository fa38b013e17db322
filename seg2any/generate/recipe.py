"""Write and read recipes: an image file holds everything needed to make the image again."""

from __future__ import annotations

import json
import math
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from seg2any.layout.images import ImageError, has_end, opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json
from seg2any.system.weights import folder_digest

KEY = "seg2any"  # of the PNG text chunk
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that holds the recipe in JPEG and WebP
MOST_PIXELS = {".jpg": 65500, ".webp": 16383}  # of a side; the libraries' own limits
MEANT = {"layout.overlap": "share"}  # what a recipe without this name means, as older versions wrote it
# These may differ between two recipes of the same image.
MADE = "made"  # the key of what changes no more than the last bits: see `seg2any.generate.made`
CIRCUMSTANCES = ("versions", "device", "attention_kernels", "adapter.path", "model.path", MADE)


class BrokenImage(Exception):
    """A file that is not a complete image, such as one of an interrupted copy."""


def save_image(image: Image.Image, recipe: dict | None, path: Path, quality: int = 95) -> None:
    """Write a PNG, JPEG or WebP with its `recipe`, whole or not at all. PNG ignores `quality`.

    Of paths in the recipe only the last part is written: images are passed on, and whole paths often name a person.
    Without a recipe nothing but the pixels is written.
    """
    text = None if recipe is None else json.dumps(_without_folders(recipe))
    with atomic_write(path) as temporary:
        if path.suffix == ".png":
            info = PngInfo()
            if text is not None:
                info.add_text(KEY, text)
            image.save(temporary, pnginfo=info)
            return
        encoded = BytesIO()  # on a full disk Pillow writes a part of a JPEG, and no error
        held = {} if text is None else {"exif": _exif(text, path)}
        image.save(encoded, Image.registered_extensions()[path.suffix], quality=quality, **held)
        temporary.write_bytes(encoded.getbuffer())


def check_size(size: tuple[int, int], path: Path) -> None:
    """Raise UserError if the format of `path` cannot hold an image of `size` (H, W)."""
    height, width = size
    if max(size) > (most := MOST_PIXELS.get(path.suffix, math.inf)):
        kind = path.suffix[1:]
        raise UserError(f"{path}: {width}x{height} is too large for {kind}, which ends at {most}; use --format png")


def check_recipe_fits(recipe: dict, path: Path) -> None:
    """Raise UserError if the format of `path` cannot hold `recipe`; call it first."""
    if path.suffix != ".png":
        _exif(json.dumps(_without_folders(recipe)), path)


def read_recipe(path: Path) -> dict | None:
    """Decode an image and return its recipe, if any. Raises BrokenImage if it is not complete."""
    try:
        with opened_image(path) as image:
            image.load()
            text = image.info.get(KEY) if image.format == "PNG" else image.getexif().get(IMAGE_DESCRIPTION)
            if image.format == "PNG" and not has_end(path, image.format):
                raise BrokenImage(path)
    except ImageError as error:
        raise BrokenImage(path) from error
    try:
        recipe = parse_json(text)
    except (TypeError, ValueError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _without_folders(recipe: dict) -> dict:
    """Return the recipe, or that of a panel, with the last part of each path; digests tell what lay there."""
    if "panel" in recipe:
        return recipe | {"panel": _without_folders(recipe["panel"])}
    parts = {name: recipe[name] for name in ("model", "adapter") if "path" in (recipe.get(name) or ())}
    return recipe | {name: part | {"path": Path(part["path"]).absolute().name} for name, part in parts.items()}


def _exif(text: str, path: Path) -> Image.Exif:
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = text
    kind = Image.registered_extensions()[path.suffix]
    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), kind, exif=exif)  # Pillow knows the limits of each format
    except ValueError as error:
        raise UserError(f"{path}: the captions are too long for a recipe in this format; use --format png") from error
    return exif


def differences(old: dict, new: dict) -> list[str]:
    """List the keys in which two recipes differ, such as `seed` or `settings.cond_scale_factor`."""
    new = json.loads(json.dumps(new))  # turns tuples into lists, as in a recipe that was read
    return sorted(_differences(old, new, ""))


@cache
def _every_byte(folder: str) -> str:
    """Return a model's digest as older versions wrote it; each folder is read once."""
    return folder_digest(Path(folder))


def _differences(old: object, new: object, name: str) -> list[str]:
    if name in CIRCUMSTANCES:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new or (old is None and new == MEANT.get(name)) else [name]
    if "fingerprint" in new and "fingerprint" not in old and "sha256" in old:
        new = {"path": new["path"], "sha256": _every_byte(new["path"])}
    names = {key: f"{name}.{key}" if name else key for key in {*old, *new}}
    return [found for key, inner in names.items() for found in _differences(old.get(key), new.get(key), inner)]
