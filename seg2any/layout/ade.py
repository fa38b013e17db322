"""Read and write folders of ADE20K: a picture of class numbers for each image (ADEChallengeData2016), or full ADE20K.

annotations/training/NAME.png    uint8, class numbers; 0 is background. objectInfo150.txt names them, else the caller
NAME.json                        full ADE20K: polygons of objects; parts of objects are left out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape
from seg2any.layout.document import read_json
from seg2any.layout.entries import is_number, kind, read_count
from seg2any.layout.images import ImageError, opened_image
from seg2any.layout.layout import Layout
from seg2any.layout.polygons import draw_polygons
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write

MAPS, NAMES = "annotations", "objectInfo150.txt"
NUMBERS = ("L", "P", "I;16", "I")  # modes of pictures whose values are numbers and not colours


def is_full_ade(document: object) -> bool:
    """Tell whether a JSON is one of the full ADE20K."""
    annotation = document.get("annotation") if isinstance(document, dict) else None
    return isinstance(annotation, dict) and "object" in annotation and "imsize" in annotation


def find_maps(folder: Path) -> list[Path]:
    """List the pictures of class numbers below a folder's annotations/; [] without that folder."""
    return sorted(path for path in (folder / MAPS).rglob("*.png") if not path.name.startswith("."))


def class_names(folder: Path, names: Mapping[int, str]) -> Mapping[int, str]:
    """Read the names of a folder's objectInfo150.txt, else return `names`. Raises LayoutError."""
    table = folder / NAMES
    if not table.is_file():
        return names
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    try:
        return {int(row[0]): row[-1].strip() for row in rows}
    except ValueError:
        raise LayoutError(f"{table}: has a line that does not begin with a number; get it again") from None


def read_map(path: Path, names: Mapping[int, str]) -> Layout:
    """Read a picture of class numbers: a region for each class, in ascending order. Raises LayoutError."""
    try:
        with opened_image(path) as image:
            if image.mode not in NUMBERS:
                raise LayoutError(f"{path}: is a picture in {image.mode}; give one channel of class numbers")
            labels = np.asarray(image).astype(np.int64)
    except ImageError as error:
        raise LayoutError(f"{path}: {error}") from None
    values = [int(value) for value in np.unique(labels) if value]
    if unknown := [value for value in values if value not in names]:
        raise LayoutError(f"{path}: class {unknown[0]} has no name; the names are of {min(names)} to {max(names)}")
    if not values:
        raise LayoutError(f"{path}: has no class, only background; leave it out")
    check_mask_shape(str(path), (len(values), *labels.shape))
    return Layout(np.stack([labels == value for value in values]), [names[value] for value in values], name=path.stem)


def read_full_ade(path: Path) -> tuple[Layout, list[str]]:
    """Read the objects of a JSON of full ADE20K, and a line about what is left out. Raises LayoutError."""
    document = read_json(path)
    if not is_full_ade(document):
        raise LayoutError(f"{path}: annotation.object is missing; give a JSON of the full ADE20K")
    annotation = document["annotation"]
    imsize, objects = annotation["imsize"], annotation["object"]
    if not isinstance(imsize, list) or len(imsize) < 2 or not isinstance(objects, list):
        raise LayoutError(f"{path}: imsize is {shown(imsize)}; write [height, width, channels]")
    size = tuple(read_count(f"{path}: imsize", side) for side in imsize[:2])
    wholes = list(_wholes(path, objects))
    if not wholes or 0 in size:
        raise LayoutError(f"{path}: has no object with an area; leave it out")
    check_mask_shape(str(path), (len(wholes), *size))
    masks = np.stack([draw_polygons(where, [points], size) for where, _, points in wholes])
    n_parts = len(objects) - len(wholes)
    left_out = [f"{path}: not carried over: {n_parts} parts of objects"] if n_parts else []
    return Layout(masks, [name for _, name, _ in wholes], name=path.stem), left_out


def write_map(layout: Layout, path: Path, names: Mapping[int, str]) -> None:
    """Write a layout without overlaps, whose captions all are names of classes, as class numbers."""
    numbers = {name: number for number, name in reversed(names.items())}
    pixels = np.zeros(layout.size, dtype=np.uint8 if max(names) < 256 else np.uint16)
    for mask, text in zip(layout.masks, layout.captions, strict=True):
        pixels[mask] = numbers[text]
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _wholes(path: Path, objects: list) -> Iterator[tuple[str, str, list[float]]]:
    """Yield place, name and polygon [x, y, x, y, ...] of every object that is no part of another one."""
    for number, one in enumerate(objects):
        where = f"{path}: object[{number}]"
        if not isinstance(one, dict):
            raise LayoutError(f"{where} is {kind(one)}; write an object with name and polygon")
        parts, polygon = one.get("parts"), one.get("polygon")
        if isinstance(parts, dict) and parts.get("part_level", 0):
            continue
        check_caption(f"{where}: name", one.get("name"))
        xs, ys = (polygon.get(axis) if isinstance(polygon, dict) else None for axis in ("x", "y"))
        is_right = isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) >= 3
        if not is_right or not all(map(is_number, [*xs, *ys])):
            raise LayoutError(f"{where}: polygon is {shown(polygon)}; write x and y of 3 points on")
        yield where, one["name"], [value for pair in zip(xs, ys, strict=True) for value in pair]
