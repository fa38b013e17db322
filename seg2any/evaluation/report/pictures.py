"""Pictures of the worst and the best samples of an evaluation, beside its JSON file.

FILE.json has FILE_pictures/index.json and the pictures named there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.layout import Layout
from seg2any.layout.images import load_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json

INDEX = "index.json"
PICTURE = re.compile(r"[\w-]+\.webp", re.ASCII)  # as `save_pictures` names them


@dataclass(frozen=True)
class Shown:
    """A sample worth looking at.

    place     "worst" or "best" by `metric`, whose value for the sample is `value`
    caption   caption of the whole image, or None
    captions  captions of the regions in order
    pictures  title -> file in the folder of the index
    """

    key: str
    place: str
    metric: str
    value: float
    caption: str | None
    captions: tuple[str, ...]
    pictures: dict[str, str]


def extremes(per_sample: Mapping[str, float], better: str, count: int) -> list[tuple[str, str, float]]:
    """Pick up to `count` worst and as many best samples: ("worst" or "best", key, value).

    No sample is picked twice; the most extreme come first.
    """
    known = [(value, key) for key, value in per_sample.items() if math.isfinite(value)]
    ranked = sorted(known, reverse=better == "lower")  # from worst to best
    worst = ranked[: min(count, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][::-1][:count]
    return [(place, key, value) for place, found in (("worst", worst), ("best", best)) for value, key in found]


def side_by_side(item: Item, seen: np.ndarray | None, photo: np.ndarray | None) -> dict[str, Image.Image]:
    """Draw the pictures of a sample by title: masks, contour, image and what else there is.

    seen   bool [N, H, W], the regions that the judge sees in the image, or None
    photo  the real image uint8 [H, W, 3], or None
    """
    layout, size = layout_of(item, "pictures"), item.image.shape[:2]
    image = Image.fromarray(item.image)
    from seg2any.layout.draw import (  # late: it imports torch, which reading pictures does not need
        contour_picture,
        overlay_picture,
    )

    pictures = {"masks": overlay_picture(layout, size), "contour": contour_picture(layout, size), "image": image}
    if seen is not None:
        found = Layout(seen, layout.captions, layout.caption, name=layout.name, overlap="share")
        pictures["what the judge sees"] = overlay_picture(found, size, image)
    if photo is not None:
        pictures["real image"] = Image.fromarray(photo)
    return pictures


def folder_of(path: Path) -> Path:
    """Return the folder of the pictures of an evaluation's JSON file."""
    return path.with_name(f"{path.stem}_pictures")


def save_pictures(folder: Path, shown: Iterable[tuple[Shown, Mapping[str, Image.Image]]]) -> None:
    """Write the pictures, then their index, and remove earlier pictures last: the index always finds its own.

    So a picture's name holds a digest of its content.
    """
    entries, written = [], set()
    for number, (sample, pictures) in enumerate(shown):
        files = {}
        for title, picture in pictures.items():
            encoded = BytesIO()
            _reduced(picture).save(encoded, "WEBP", quality=90)
            digest = hashlib.sha256(encoded.getbuffer()).hexdigest()[:8]
            files[title] = f"{number:02d}_{title.replace(' ', '_')}_{digest}.webp"
            with atomic_write(folder / files[title]) as temporary:
                temporary.write_bytes(encoded.getbuffer())
        entries.append(asdict(sample) | {"pictures": files})
        written.update(files.values())
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for old in folder.glob("*.webp"):
        if old.name not in written:
            old.unlink()


def read_pictures(folder: Path) -> list[Shown]:
    """Read the index, empty if there is none. Raises UserError if it or a picture is damaged."""
    try:
        shown = [_shown(entry) for entry in parse_json((folder / INDEX).read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / INDEX}: cannot be read ({error}); evaluate again") from error
    for sample in shown:
        for file in sample.pictures.values():
            if not PICTURE.fullmatch(file):  # other names could leave the folder, or the address of a page's picture
                raise UserError(f"{folder / INDEX}: {file!r} is no name of a picture beside it; evaluate again")
            load_image(folder / file)
    return shown


def _shown(entry: dict) -> Shown:
    """Read an entry of the index. Raises TypeError, KeyError or ValueError for anything else."""
    if not isinstance(entry["pictures"], dict):
        raise TypeError("pictures is something else")
    sample = Shown(**entry | {"captions": tuple(entry["captions"]), "value": float(entry["value"])})
    texts = (sample.key, sample.place, sample.metric, sample.caption or "", *sample.captions)
    if not all(isinstance(text, str) for text in (*texts, *sample.pictures.keys(), *sample.pictures.values())):
        raise TypeError("a text is something else")
    return sample


def _reduced(picture: Image.Image, side: int = 384) -> Image.Image:
    """Convert to RGB with no side longer than `side`."""
    scale = min(1.0, side / max(picture.size))
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS) if scale < 1 else picture.convert("RGB")
