"""Read what COCO, SA-1B and panoptic files say besides masks: image, categories, and which annotation belongs to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutWarning, check_caption, check_colors
from seg2any.layout.entries import Annotation, Region, kind, read_count, read_name, read_region
from seg2any.system.errors import shown

MOST_OFF = 2.0  # pixels by which a box may differ from its mask, as outlines lie between pixels
MOST_OFF_SHARE = 0.05  # of a mask, by which an area may differ, besides half a pixel along its outline


@dataclass(frozen=True)
class ImageFacts:
    """The id and size (H, W) that a JSON gives its image; None where it gives none."""

    id: object = None
    size: tuple[int, int] | None = None


def read_image(path: Path, document: dict) -> ImageFacts:
    """Read `images` with one entry, `image`, or `width` and `height` of the document. Raises LayoutError."""
    images = document.get("images")
    if isinstance(images, list) and len(images) > 1:
        raise LayoutError(f"{path}: images has {len(images)} entries; give {path.name}#ID for the image with that id")
    field, image = "images[0]", images[0] if isinstance(images, list) and images else None
    if image is None:
        field, image = ("image", document["image"]) if isinstance(document.get("image"), dict) else ("", document)
    if not isinstance(image, dict):
        raise LayoutError(f"{path}: {field} is {kind(image)}; write an object with id, width and height")
    where = f"{path}: {field}".removesuffix(": ")
    sides = [read_count(f"{where}: {side}", image[side]) for side in ("height", "width") if side in image]
    return ImageFacts(image.get("image_id", image.get("id")), tuple(sides) if len(sides) == 2 else None)


def read_names(path: Path, document: dict) -> dict[object, str]:
    """Read the names of `categories` by id. Raises LayoutError."""
    names, categories = {}, document.get("categories", [])
    if not isinstance(categories, list):
        raise LayoutError(f"{path}: categories is {kind(categories)}; write a list of objects with id and name")
    for n, category in enumerate(categories):
        where = f"{path}: categories[{n}]"
        if not isinstance(category, dict) or not isinstance(category.get("id"), int):
            raise LayoutError(f"{where} is {shown(category)}; write an object with id and name")
        check_caption(f"{where}: name", category.get("name"))
        if names.setdefault(category["id"], category["name"]) != category["name"]:
            raise LayoutError(f"{where}: id {category['id']} has two names; give each category its own id")
    return names


def read_annotations(
    path: Path, document: dict, entries: list, image: ImageFacts, numbers: Sequence[int] | None = None
) -> Annotation:
    """Read the entries of `annotations` that belong to the image: masks, or segments of a panoptic picture.

    numbers  places of the entries in the file, for messages; None: they are all of it

    Returns an annotation without caption and seed. Raises LayoutError, and warns of entries of other images.
    """
    places = range(len(entries)) if numbers is None else numbers
    placed = [(f"{path}: annotations[{n}]", entry) for n, entry in zip(places, entries, strict=True)]
    own = _of_image(path, placed, image)
    names = read_names(path, document)
    if all(isinstance(entry, dict) and "segments_info" in entry for _, entry in own):
        return _read_panoptic(own, names, image)
    regions = tuple(read_region(where, entry, names) for where, entry in own)
    return Annotation(regions, None, None, "share", image.size)


def _of_image(path: Path, placed: list[tuple[str, object]], image: ImageFacts) -> list[tuple[str, object]]:
    ids = [entry.get("image_id") if isinstance(entry, dict) else None for _, entry in placed]
    for (where, _), id in zip(placed, ids, strict=True):
        if not isinstance(id, int | str | None):
            raise LayoutError(f"{where}: image_id is {shown(id)}; write the id of the image")
    wanted = image.id
    if wanted is None:
        given = list(dict.fromkeys(id for id in ids if id is not None))
        if len(given) > 1:
            raise LayoutError(
                f"{path}: annotations are of {len(given)} images (image_id {shown(given[0])}, {shown(given[1])}); "
                f"give {path.name}#ID for the image with that id, or list it in images"
            )
        return placed
    own = [one for one, id in zip(placed, ids, strict=True) if id is None or str(id) == str(wanted)]
    others = [id for id in ids if id is not None and str(id) != str(wanted)]  # some writers quote numbers
    if not own:
        raise LayoutError(f"{path}: no annotation has image_id {shown(wanted)}, that of the image; correct the ids")
    if others:
        text = f"annotations of other images are left out: {len(others)}, such as of image_id {shown(others[0])}"
        warnings.warn(f"{path}: {text}", LayoutWarning, stacklevel=5)
    return own


def _read_panoptic(own: list[tuple[str, dict]], names: Mapping[object, str], image: ImageFacts) -> Annotation:
    (where, entry), *others = own
    if others:
        raise LayoutError(f"{others[0][0]}: is a second panoptic picture of the image; keep one")
    segments = entry["segments_info"]
    if not isinstance(segments, list) or not segments:
        raise LayoutError(f"{where}: segments_info is {'empty' if segments == [] else kind(segments)}; list segments")
    picture = read_name(f"{where}: file_name", entry.get("file_name"))
    regions = tuple(
        read_region(f"{where}: segments_info[{n}]", segment, names, has_panoptic=True)
        for n, segment in enumerate(segments)
    )
    return Annotation(regions, None, None, "share", image.size, picture)


def read_segments(colors: np.ndarray, path: Path, regions: tuple[Region, ...]) -> list[np.ndarray]:
    """Find the segments' masks, bool [H, W] each, in a panoptic picture, uint8 [H, W, 3].

    Warns of segments that no region lists. Raises LayoutError for a segment that the picture lacks.
    """
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    numbers = red + (green << 8) + (blue << 16)
    present, counts = np.unique(numbers, return_counts=True)
    check_colors(str(path), len(present))
    for region in regions:
        if region.segment not in present:
            raise LayoutError(f"{region.where}: id {region.segment} is not in {path.name}; correct it or remove it")
    listed = [region.segment for region in regions]
    known = {0, *listed}
    unlisted = [(int(number), int(n)) for number, n in zip(present, counts, strict=True) if int(number) not in known]
    if unlisted:
        found = ", ".join(f"{number} ({n} pixels)" for number, n in unlisted[:5])
        warnings.warn(
            f"{path}: segment {found} is not in segments_info and counts as background", LayoutWarning, stacklevel=4
        )
    return [numbers == number for number in listed]


def compare_with_mask(region: Region, mask: np.ndarray) -> None:
    """Warn where the box or the area of an entry contradicts its mask, bool [H, W] with a pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, width, height = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
    if region.box is not None:
        x, y, w, h = region.box
        pairs = zip((x, y, x + w, y + h), (left, top, left + width, top + height), strict=True)
        if max(abs(said - found) for said, found in pairs) > MOST_OFF:
            found = [int(value) for value in (left, top, width, height)]
            _contradicts(region, f"bbox is {list(region.box)}", f"its mask has {found}")
    pixels = int(mask.sum())
    if region.area is not None and abs(region.area - pixels) > MOST_OFF_SHARE * pixels + (width + height) / 2:
        _contradicts(region, f"area is {region.area}", f"its mask has {pixels} pixels")


def _contradicts(region: Region, said: str, found: str) -> None:
    text = f"{region.where}: {said}, but {found}, which count; correct one of them"
    warnings.warn(text, LayoutWarning, stacklevel=5)
