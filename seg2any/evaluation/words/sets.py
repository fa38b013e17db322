"""Read the sets that language segmenters are published on, each in the form in which it is handed on.

refcoco    JSON of COCO's form, an image entry for each phrase (as MDETR converted RefCOCO, + and g from pickles, which
           are not read here)
reasoning  ReasonSeg: a JSON beside each photo, with texts and polygons called target or ignore
grounded   GranD-f: two JSONs of COCO's form, masks and captions with the phrases of the masks in order
panoptic   JSON and label pictures of COCO's panoptic form, as of ADE20K and COCO
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from seg2any.evaluation.metrics.panoptic import Segments
from seg2any.evaluation.words.photos import AskedPhrase, Categories, Photo
from seg2any.layout.checks import check_mask_shape
from seg2any.layout.entries import read_count
from seg2any.layout.images import load_image
from seg2any.layout.polygons import check_work, draw_polygons
from seg2any.layout.rle import decode_runs, draw_runs
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.json_text import parse_json
from seg2any.system.limits import bounded_bytes, limits

TARGET, IGNORE = "target", "ignore"


def read_refcoco(images: Path, annotations: Path) -> Iterator[Photo]:
    """Yield a photo for each phrase."""
    document = _document(annotations)
    masks = _by_image(annotations, document)
    for number, entry in enumerate(_entries(annotations, document, "images")):
        where = f"{annotations}: images[{number}]"
        size = _size(where, entry)
        with _damaged(where):
            mask = _union(where, masks.get(_value(where, entry, "id"), []), size)
        phrase = AskedPhrase(_value(where, entry, "caption"), mask)
        yield Photo(str(entry["id"]), _reader(images, where, entry), (phrase,))


def read_reasoning(images: Path) -> Iterator[Photo]:
    """Yield the photos of a folder that have a JSON beside them, each with its texts."""
    files = sorted(images.glob("*.json"))
    if not files:
        raise UserError(f"{images}: no JSON beside any photo; give the folder of a split of ReasonSeg")
    for path in files:
        document, photo = _document(path), path.with_suffix(".jpg")
        with_size = load_image(photo)
        size = with_size.size[::-1]
        shapes = _entries(path, document, "shapes")
        drawn = {name: np.zeros(size, bool) for name in (TARGET, IGNORE)}
        for number, shape in enumerate(shapes):
            where = f"{path}: shapes[{number}]"
            name = str(_value(where, shape, "label")).lower()
            with _damaged(where):
                points = np.asarray(_value(where, shape, "points"), float).ravel().tolist()
            drawn[IGNORE if IGNORE in name else TARGET] |= _drawn(where, [points], size)
        is_question = bool(document.get("is_sentence", True))
        texts = [document["text"]] if isinstance(document.get("text"), str) else _entries(path, document, "text")
        phrases = (AskedPhrase(str(text), drawn[TARGET], drawn[IGNORE], is_question) for text in texts)
        yield Photo(path.stem, lambda photo=photo: np.asarray(load_image(photo).convert("RGB")), tuple(phrases))


def read_grounded(images: Path, masks: Path, captions: Path) -> Iterator[Photo]:
    """Yield the photos of grounded captions; the k-th mask is that of the k-th phrase."""
    document, told = _document(masks), _document(captions)
    by_image = _by_image(masks, document)
    with _damaged(str(captions)):
        labels = {_value(str(captions), one, "image_id"): one for one in _entries(captions, told, "annotations")}
    for number, entry in enumerate(_entries(masks, document, "images")):
        where = f"{masks}: images[{number}]"
        size = _size(where, entry)
        with _damaged(where):
            own = by_image.get(_value(where, entry, "id"), [])
            label = labels.get(entry["id"], {})
            texts, caption = label.get("labels", []), label.get("caption", "")
        if not isinstance(texts, list):
            raise UserError(f"{captions}: image {shown(entry['id'])} has labels {shown(texts)}; get the file again")
        if not isinstance(caption, str):
            raise UserError(f"{captions}: image {shown(entry['id'])} has caption {shown(caption)}; get the file again")
        check_mask_shape(where, (len(own), *size))
        if len(texts) != len(own):
            counts = f"{len(texts)} labels and {len(own)} masks"
            raise UserError(f"{captions}: image {shown(entry['id'])} has {counts}; get both files again")
        drawn = tuple((str(text), _union(where, [one], size)) for text, one in zip(texts, own, strict=True))
        yield Photo(str(entry["id"]), _reader(images, where, entry), told=drawn, caption=caption)


def read_categories(annotations: Path) -> Categories:
    """Read the closed list of a panoptic set."""
    entries = _entries(annotations, _document(annotations), "categories")
    names = [str(_value(f"{annotations}: categories", one, "name")) for one in entries]
    stuff = (name for name, one in zip(names, entries, strict=True) if not one.get("isthing"))
    return Categories(tuple(names), frozenset(stuff))


def read_panoptic(images: Path, annotations: Path, labels: Path) -> Iterator[Photo]:
    """Yield the photos of a panoptic set; `labels` is the folder of its label pictures."""
    document = _document(annotations)
    with _damaged(str(annotations)):
        at = f"{annotations}: categories"
        listed = _entries(annotations, document, "categories")
        names = {_value(at, one, "id"): str(_value(at, one, "name")) for one in listed}
        files = {_value(str(annotations), one, "id"): one for one in _entries(annotations, document, "images")}
    for number, entry in enumerate(_entries(annotations, document, "annotations")):
        where = f"{annotations}: annotations[{number}]"
        colors = np.asarray(load_image(_below(labels, where, entry)).convert("RGB")).astype(np.int64)
        parts = _entries(where, entry, "segments_info")
        with _damaged(where):
            classes = {_value(where, one, "id"): names.get(_value(where, one, "category_id")) for one in parts}
            if None in classes.values():
                raise UserError(f"{where}: a category_id is not among categories; get the file again")
            crowds = frozenset(one["id"] for one in parts if one.get("iscrowd"))
            photo = files.get(_value(where, entry, "image_id"))
        if photo is None:
            raise UserError(f"{where}: image {shown(entry['image_id'])} is not among images; get the file again")
        segments = Segments(colors @ (1, 256, 65536), classes, crowds)
        yield Photo(str(entry["image_id"]), _reader(images, where, photo), segments=segments)


@contextmanager
def _damaged(where: str) -> Iterator[None]:
    """Turn what values of another kind than the set has raise into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{where}: is damaged ({brief(error)}); get the file again") from None


def _document(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(bounded_bytes(path, limits().json_bytes))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the file of the set") from None
    except ValueError as error:
        raise UserError(f"{path}: the file is no JSON ({error}); get it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: the file holds no object; give the file of the set")
    return found


def _below(folder: Path, where: str, entry: Any) -> Path:
    """Return the file that an entry names. Raises UserError for one outside of its folder."""
    name = _value(where, entry, "file_name")
    if not isinstance(name, str) or not name or "\0" in name or ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{where}: file_name is {shown(name)}, no file below {folder}; get the file again")
    return folder / name


def _entries(where: Path | str, document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    if not isinstance(found, list):
        raise UserError(f"{where}: has no list '{name}'; give the file of the set")
    return found


def _value(where: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise UserError(f"{where}: has no '{name}'; get the file again")
    return entry[name]


def _size(where: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    height, width = (read_count(f"{where}: {side}", _value(where, entry, side)) for side in ("height", "width"))
    check_mask_shape(where, (1, height, width))
    return height, width


def _by_image(path: Path, document: Mapping[str, Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for number, one in enumerate(_entries(path, document, "annotations")):
        where = f"{path}: annotations[{number}]"
        with _damaged(where):
            found[_value(where, one, "image_id")].append(one)
    return found


def _union(where: str, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Draw the masks of some annotations, polygons or run lengths: bool [H, W]."""
    mask = np.zeros(size, bool)
    for one in annotations:
        segmentation = _value(where, one, "segmentation")
        if isinstance(segmentation, dict):
            runs, own = decode_runs(where, segmentation)
            if own != size:
                raise UserError(f"{where}: a mask is {own[1]}x{own[0]}, its image {size[1]}x{size[0]}; get both again")
            mask |= draw_runs(runs, own)
        else:
            mask |= _drawn(where, segmentation, size)
    return mask


def _drawn(where: str, polygons: Any, size: tuple[int, int]) -> np.ndarray:
    """Draw polygons [x, y, x, y, ...] that were read as they are: bool [H, W]."""
    with _damaged(where):
        numbers = [[float(number) for number in polygon] for polygon in polygons]
        if not numbers or any(len(one) % 2 or len(one) < 6 or not all(map(math.isfinite, one)) for one in numbers):
            raise ValueError("a polygon is no list of x and y")
        if any(abs(number) > 2**31 for polygon in numbers for number in polygon):
            raise ValueError("a polygon lies far outside of the image")
        check_work(where, numbers, size)
        return draw_polygons(where, numbers, size)


def _reader(images: Path, where: str, entry: Mapping[str, Any]):
    path = _below(images, where, entry)

    def read() -> np.ndarray:
        if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            told = "there is no such photo; give the folder of the photos with --images"
            raise UserError(f"{shown(str(path), 200)}: {told}")
        return np.asarray(load_image(path).convert("RGB"))

    return read
