"""Split a COCO file of several images: NAME.json#ID is the layout of the image with that id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from seg2any.layout.checks import LayoutError
from seg2any.system.errors import shown

REFERENCE = re.compile(r"(.+\.json)#(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Collection:
    """Images of a file by id, as text.

    images   their entries in `images`, in the order of the file; without `images`, made of the annotations' ids
    numbers  places of their annotations in `annotations`; images without annotations have none
    names    of the layouts: the images' file names without ending, with the id behind names that several images have
    """

    document: Mapping[str, object]
    images: Mapping[str, Mapping[str, object]]
    numbers: Mapping[str, Sequence[int]]
    names: Mapping[str, str]

    def document_of(self, id: str) -> dict:
        """Return the JSON of one image, which may have its own caption and seed."""
        entries, image = self.document["annotations"], self.images[id]
        own = {key: image[key] for key in ("caption", "seed") if key in image}
        return {**self.document, "images": [image], "annotations": [entries[n] for n in self.numbers[id]], **own}


def split_reference(path: Path) -> tuple[Path, str | None]:
    """Split NAME.json#ID into the file and the id; a path of another form is returned with None."""
    match = REFERENCE.fullmatch(path.name)
    if match is None or path.is_file():
        return path, None
    return path.with_name(match[1]), match[2]


def collect(path: Path, document: object) -> Collection | None:
    """Group the annotations of a file by image; None for the JSON of one image and for a damaged one.

    Raises LayoutError for ids that are no numbers or words, or that two images have.
    """
    if not isinstance(document, dict) or "segments_info" in document:
        return None
    images, entries = document.get("images", []), document.get("annotations")
    if not isinstance(entries, list) or not isinstance(images, list):
        return None
    numbers: dict[str, list[int]] = {}
    for n, entry in enumerate(entries):
        if isinstance(entry, dict) and isinstance(entry.get("image_id"), int | str):
            numbers.setdefault(str(entry["image_id"]), []).append(n)
    if len(images) < 2 and (images or len(numbers) < 2):
        return None
    by_id: dict[str, Mapping[str, object]] = {}
    for n, image in enumerate(images or [{"id": id} for id in numbers]):
        id = image.get("id") if isinstance(image, dict) else None
        if isinstance(id, bool) or not isinstance(id, int | str) or "/" in str(id):
            raise LayoutError(f"{path}: images[{n}] has the id {shown(id)}; number the images")
        if by_id.setdefault(str(id), image) is not image:
            raise LayoutError(f"{path}: images[{n}] has the id {shown(id)} of an earlier image; give each its own")
    stems = {id: _stem(image) or id for id, image in by_id.items()}
    count = Counter(stems.values())
    names = {id: stem if count[stem] == 1 else f"{stem}_{id}" for id, stem in stems.items()}
    return Collection(document, by_id, numbers, names)


def _stem(image: Mapping[str, object]) -> str:
    name = image.get("file_name")
    return PureWindowsPath(name).stem if isinstance(name, str) else ""  # takes both kinds of slashes
