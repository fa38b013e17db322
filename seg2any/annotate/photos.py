"""Find the photos of a set, and give each a name of its own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seg2any.data.pictures import SUFFIXES, is_utf8
from seg2any.system.errors import UserError

UNUSUAL = re.compile(r"[^A-Za-z0-9_.-]+")  # characters that the tools of SACap refuse in names
DIGITS = 8  # of a digest in a name


@dataclass(frozen=True)
class Photo:
    """A photo of the set.

    key   path below the place that was given, with slashes: the photo's identity
    name  of the file that is written, without suffix; no other photo of the set has it
    group folder that it is written to, below raw/: the name of the folder that it is in
    """

    key: str
    path: str
    name: str
    group: str


def find_photos(places: Iterable[Path], known: Mapping[str, str]) -> list[Photo]:
    """List the photos of files and folders, with all folders below, sorted by key.

    known  key -> name of photos that have been written already: they keep their names

    Raises UserError for a place without photos, and for two photos with one key.
    """
    found: dict[str, Path] = {}
    for place in places:
        for key, path in _photos_of(place):
            if found.setdefault(key, path) != path:
                raise UserError(f"{found[key]} and {path}: both would be {key}; give the folder above them instead")
    taken = {name.casefold() for key, name in known.items() if key in found}
    photos = []
    for key in sorted(found):
        name = known.get(key) or _free_name(key, taken)
        taken.add(name.casefold())
        photos.append(Photo(key, str(found[key]), name, _plain(found[key].absolute().parent.name) or "photos"))
    return photos


def _plain(name: str) -> str:
    """Return a name in the characters that the tools of SACap take."""
    return UNUSUAL.sub("_", name).lstrip(".")[:200]


def _photos_of(place: Path) -> Iterable[tuple[str, Path]]:
    if place.is_file():
        return [(place.name, place)]
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder; give a photo, or a folder of photos")
    found = []
    for folder, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(one for one in folders if one[0] != ".")
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and name[0] != ".":
                path = Path(folder) / name
                if not is_utf8(str(path)):
                    raise UserError(f"{ascii(str(path))}: the name is not UTF-8; rename it")
                found.append((path.relative_to(place).as_posix(), path))
    if not found:
        raise UserError(f"{place}: holds no photo; give a folder of {', '.join(SUFFIXES)}")
    return found


def _free_name(key: str, taken: set[str]) -> str:
    """Choose the name of a photo: its own, with a digest of its key where another photo has that."""
    name = _plain(Path(key).stem) or "photo"
    if name.casefold() not in taken:
        return name
    return f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:DIGITS]}"
