"""Check the entries of a layout's JSON, with strict types, so that errors name the field."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from PIL import ImageColor

from seg2any.layout.checks import LayoutError, LayoutWarning, check_caption
from seg2any.system.errors import shown

Color = tuple[int, int, int]
MOST_COMPARED = 100  # keys that are compared with known ones by spelling, which takes a millisecond each
PLACES = ("color", "mask", "segmentation")
# Read, or known to stand in files of COCO, SA-1B and LVIS without a meaning for images.
DOCUMENT_KEYS = (
    *("caption", "seed", "source", "segments_info", "annotations", "images", "image", "categories", "file_name"),
    *("empty", "width", "height", "image_id", "id", "info", "licenses", "license", "type"),
)
ENTRY_KEYS = (
    *("text", "caption", *PLACES, "id", "image_id", "category_id", "bbox", "area", "iscrowd", "isthing", "score"),
    *("predicted_iou", "stability_score", "crop_box", "point_coords", "keypoints", "num_keypoints", "attributes"),
    *("file_name", "segments_info", "ignore"),
)
IMAGE_MEANT = {
    **dict.fromkeys(("prompt", "global_prompt", "global_caption", "description", "text", "title"), "caption"),
    **dict.fromkeys(("regions", "segments", "objects", "masks", "instances", "entities"), "segments_info"),
}
ENTRY_MEANT = {
    **dict.fromkeys(("prompt", "description", "label", "phrase", "name", "class", "category"), "text"),
    **dict.fromkeys(("mask_path", "mask_file", "file", "path"), "mask"),
    **dict.fromkeys(("rle", "polygon", "polygons", "counts"), "segmentation"),
    **dict.fromkeys(("colour", "rgb"), "color"),
}


@dataclass(frozen=True)
class Region:
    """Entry of `segments_info` or `annotations`: a caption, and one of color, mask, segmentation and segment.

    segmentation  run lengths {"size", "counts"}, or polygons [[x, y, x, y, ...], ...] in pixels
    segment       number of the region in the panoptic picture of the file
    box, area     what the entry says of its mask: (x, y, width, height) and pixels; None if it says nothing
    """

    where: str  # "five.json: segments_info[2]", for messages
    text: str
    color: Color | None = None
    mask: str | None = None
    segmentation: dict | list | None = None
    segment: int | None = None
    box: tuple[float, ...] | None = None
    area: float | None = None

    @property
    def field(self) -> str:
        """Place of the entry in the JSON, such as segments_info[2]."""
        return self.where.rsplit(": ", 1)[-1]


@dataclass(frozen=True)
class Annotation:
    """Content of a layout's JSON; masks in other files are not read yet.

    overlap   "share" for `annotations`, whose masks have no order; else "hide"
    size      (H, W) of the image as the JSON says; None if it does not
    panoptic  name of the picture that numbers the segments
    scores    of a segmenter for each region; None unless all have one
    source    name of the segmenter; "" = none
    """

    regions: tuple[Region, ...]
    caption: str | None
    seed: int | None
    overlap: str = "hide"
    size: tuple[int, int] | None = None
    panoptic: str | None = None
    scores: tuple[float, ...] | None = None
    source: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """Captions of the regions."""
        return tuple(region.text for region in self.regions)


def read_region(where: str, entry: object, names: Mapping[object, str], has_panoptic: bool = False) -> Region:
    """Read an entry.

    names         of categories by id, captions of entries without one
    has_panoptic  the entry's `id` may be its number in a picture

    Raises LayoutError.
    """
    if not isinstance(entry, dict):
        raise LayoutError(f"{where} is {kind(entry)}; write an object with color and text")
    text = _read_text(where, entry, names)
    places = [place for place in PLACES if place in entry]
    if len(places) > 1 or not (places or has_panoptic):
        found = " and ".join(places) if places else "none" + misspelt(entry, PLACES, ENTRY_KEYS, ENTRY_MEANT)
        raise LayoutError(f"{where} has {found} of {', '.join(PLACES)}; give exactly one")
    if places:
        check = {"color": _read_color, "mask": read_name, "segmentation": _read_segmentation}[places[0]]
        place = {places[0]: check(f"{where}: {places[0]}", entry[places[0]])}
    else:
        place = {"segment": read_count(f"{where}: id", entry.get("id"))}
    return Region(where, text, **place, box=_read_box(where, entry), area=_read_area(where, entry))


def _read_text(where: str, entry: dict, names: Mapping[object, str]) -> str:
    field = "caption" if "caption" in entry and "text" not in entry else "text"
    if field in entry:
        check_caption(f"{where}: {field}", entry[field])
        return entry[field]
    category = entry.get("category_id")
    if names and isinstance(category, int) and category not in names:
        raise LayoutError(f"{where}: category_id {category} is not in categories; add it, or write text")
    if isinstance(category, int) and category in names:
        return names[category]
    hint = misspelt(entry, ("text", "caption"), ENTRY_KEYS, ENTRY_MEANT)
    raise LayoutError(f"{where}: text is missing{hint}; describe what is there")


def warn_of_keys(path: object, document: dict, entries: Iterable[dict]) -> None:
    """Warn with LayoutWarning of keys of a JSON that nothing reads, with the key that was probably meant."""
    warn_of_unread(path, document, DOCUMENT_KEYS, IMAGE_MEANT)
    keys = dict.fromkeys(key for entry in entries for key in entry)
    warn_of_unread(f"{path}: regions", keys, ENTRY_KEYS, ENTRY_MEANT)


def warn_of_unread(where: object, keys: Iterable[str], known: Sequence[str], meant: Mapping[str, str]) -> None:
    """Warn with LayoutWarning of keys that are neither `known` nor comments, which begin with _, # or //.

    meant  other words for known keys; besides, a key of similar spelling is suggested
    """
    unread = [key for key in keys if key not in known and not key.startswith(("_", "//", "#"))]
    if unread:
        near = {key: _neighbour(key, known, meant) for key in unread[:5]}
        texts = [shown(key) + (f" (did you mean {word}?)" if word else "") for key, word in near.items()]
        more = f", and {len(unread) - 5} more" if len(unread) > 5 else ""
        warnings.warn(f"{where}: nothing reads {', '.join(texts)}{more}", LayoutWarning, stacklevel=4)


def misspelt(keys: Iterable[str], wanted: Sequence[str], known: Sequence[str], meant: Mapping[str, str]) -> str:
    """Describe, in parentheses, a key that was probably meant to be one of `wanted`; "" without one."""
    some = islice((key for key in keys if key not in known), MOST_COMPARED)
    found = next((key for key in some if _neighbour(key, known, meant) in wanted), None)
    return f" ({shown(found)} is not read: call it {_neighbour(found, known, meant)})" if found else ""


def _neighbour(key: str, known: Sequence[str], meant: Mapping[str, str]) -> str | None:
    return meant.get(key.lower()) or next(iter(difflib.get_close_matches(key.lower(), known, 1, 0.7)), None)


def _read_color(where: str, value: object) -> Color:
    """Read [red, green, blue], "#c81e1e", "#f00" or a colour name of CSS. Raises LayoutError."""
    if isinstance(value, str):
        return _named_color(where, value)
    whole = isinstance(value, list) and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    if not whole or len(value) != 3 or not all(0 <= part <= 255 for part in value):
        raise LayoutError(
            f'{where} is {shown(value)}; write "#c81e1e", a colour name of CSS, or [red, green, blue], whole numbers '
            "from 0 to 255"
        )
    return tuple(value)


def _named_color(where: str, text: str) -> Color:
    word = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{6}", word):
        word = f"#{word}"  # as many colour pickers show it
    if word in ImageColor.colormap or re.fullmatch(r"#([0-9a-f]{3}|[0-9a-f]{6})", word):
        return ImageColor.getrgb(word)
    near = difflib.get_close_matches(word, ImageColor.colormap, 1, 0.7)
    meant = f' (did you mean "{near[0]}"?)' if near else ""
    raise LayoutError(
        f'{where} is {shown(text)}{meant}; write "#c81e1e", a colour name of CSS such as "teal", or [red, green, blue]'
    )


def read_name(where: str, value: object) -> str:
    """Check the name of a mask's file. Raises LayoutError."""
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > 255:
        raise LayoutError(f"{where} is {shown(value)}; write the file name of the mask")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LayoutError(f"{where} {shown(value)} is not a file name; write the file name of the mask") from None
    return value


def _read_segmentation(where: str, value: object) -> dict | list:
    if isinstance(value, list) and value and all(map(is_number, value)):
        value = [value]  # one polygon without the list around it
    if isinstance(value, list) and value:
        for n, polygon in enumerate(value):
            points = isinstance(polygon, list) and all(map(is_number, polygon))
            if not points or len(polygon) < 6 or len(polygon) % 2:
                raise LayoutError(f"{where}[{n}] is {shown(polygon)}; write a polygon [x, y, x, y, ...] of 3 points on")
        return value
    if not isinstance(value, dict):
        hint = 'write run lengths {"size": [height, width], "counts": ...} or polygons [[x, y, x, y, ...]]'
        raise LayoutError(f"{where} is {'empty' if value == [] else kind(value)}; {hint}")
    return value


def _read_box(where: str, entry: dict) -> tuple[float, ...] | None:
    box = entry.get("bbox")
    if box is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise LayoutError(f"{where}: bbox is {shown(box)}; write [x, y, width, height] in pixels, or leave it out")
    return tuple(box)


def _read_area(where: str, entry: dict) -> float | None:
    area = entry.get("area")
    if area is not None and not is_number(area):
        raise LayoutError(f"{where}: area is {shown(area)}; write a number of pixels, or leave it out")
    return area


def read_count(where: str, value: object) -> int:
    """Check a whole number from 0 on. Raises LayoutError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise LayoutError(f"{where} is {shown(value)}; write a whole number from 0 on")
    return value


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a finite number of a size that pixels may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def kind(value: object) -> str:
    """Name the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
