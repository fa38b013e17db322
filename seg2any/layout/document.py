"""Read and write the JSON of a layout, with strict types, so that errors name the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.layout.checks import LayoutError, LayoutParts, check_caption, check_seed
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write

Color = tuple[int, int, int]
MAX_JSON_BYTES = 2**26
PLACES = ("color", "mask", "segmentation")


@dataclass(frozen=True)
class Region:
    """Entry of `segments_info`: a caption, and one of color, mask and segmentation."""

    where: str  # "five.json: segments_info[2]", for messages
    text: str
    color: Color | None = None
    mask: str | None = None
    segmentation: dict | None = None

    @property
    def field(self) -> str:
        """Place of the entry in the JSON, such as segments_info[2]."""
        return self.where.rsplit(": ", 1)[-1]


@dataclass(frozen=True)
class Annotation:
    """Content of a layout's JSON; masks in other files are not read yet."""

    regions: tuple[Region, ...]
    caption: str | None
    seed: int | None
    overlap: str  # "share" for `annotations`, whose masks have no order

    @property
    def texts(self) -> tuple[str, ...]:
        """Captions of the regions."""
        return tuple(region.text for region in self.regions)


def read_annotation(path: Path) -> Annotation:
    """Read and check a layout's JSON. Raises LayoutError."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise LayoutError(f"{path}: is {_kind(document)}; write an object with segments_info")
    if isinstance(document.get("images"), list) and len(document["images"]) > 1:
        raise LayoutError(f"{path}: images has {len(document['images'])} entries; write one JSON per image")
    field = "annotations" if "annotations" in document and "segments_info" not in document else "segments_info"
    entries = document.get(field)
    if not isinstance(entries, list):
        state = f"is {_kind(entries)}" if field in document else "is missing"
        raise LayoutError(f"{path}: {field} {state}; write a list of regions, each with color and text")
    if not entries:
        raise LayoutError(f"{path}: {field} is empty; a layout needs at least one region")
    regions = tuple(_read_region(f"{path}: {field}[{n}]", entry) for n, entry in enumerate(entries))
    _check_colors_differ(regions)
    caption, seed = document.get("caption"), document.get("seed")
    if caption is not None:
        check_caption(f"{path}: caption", caption)
    if seed is not None:
        check_seed(f"{path}: seed", seed)
    return Annotation(regions, caption, seed, "share" if field == "annotations" else "hide")


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises LayoutError, also for NaN, Infinity and a name that appears twice in one object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise LayoutError(f"{path}: is larger than {MAX_JSON_BYTES >> 20} MiB; write one JSON per image")
        return decode_json(path.read_bytes())
    except LayoutError:
        raise
    except OSError as error:
        raise LayoutError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise LayoutError(f"{path}: is nested too deeply; write segments_info as a plain list") from error
    except ValueError as error:
        raise LayoutError(f"{path}: is not valid JSON ({shown(str(error), 120)}); correct it") from error


def decode_json(data: bytes) -> object:
    """Parse UTF-8 `data` as strictly as `read_json`.

    Raises ValueError, or RecursionError for deep nesting.
    """
    return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)


def write_annotation(layout: LayoutParts, colors: Sequence[Color], path: Path) -> None:
    """Write the published JSON for a colour map with these colours, one line per region."""
    head = {name: getattr(layout, name) for name in ("caption", "seed") if getattr(layout, name) is not None}
    regions = [{"color": color, "text": text} for color, text in zip(colors, layout.captions, strict=True)]
    fields = [f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head.items()]
    entries = ",\n".join(f"    {json.dumps(region, ensure_ascii=False)}" for region in regions)
    fields.append(f'  "segments_info": [\n{entries}\n  ]')
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def _read_region(where: str, entry: object) -> Region:
    if not isinstance(entry, dict):
        raise LayoutError(f"{where} is {_kind(entry)}; write an object with color and text")
    text_field = "caption" if "caption" in entry and "text" not in entry else "text"
    if text_field not in entry:
        raise LayoutError(f"{where}: text is missing; describe what is there")
    check_caption(f"{where}: {text_field}", entry[text_field])
    places = [place for place in PLACES if place in entry]
    if len(places) != 1:
        found = " and ".join(places) if places else "none"
        raise LayoutError(f"{where} has {found} of {', '.join(PLACES)}; give exactly one")
    check = {"color": _read_color, "mask": _read_name, "segmentation": _read_segmentation}[places[0]]
    return Region(where, entry[text_field], **{places[0]: check(f"{where}: {places[0]}", entry[places[0]])})


def _read_color(where: str, value: object) -> Color:
    whole = isinstance(value, list) and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    if not whole or len(value) != 3 or not all(0 <= part <= 255 for part in value):
        raise LayoutError(f"{where} is {shown(value)}; write [red, green, blue], whole numbers from 0 to 255")
    return tuple(value)


def _read_name(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > 255:
        raise LayoutError(f"{where} is {shown(value)}; write the file name of the mask")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LayoutError(f"{where} {shown(value)} is not a file name; write the file name of the mask") from None
    return value


def _read_segmentation(where: str, value: object) -> dict:
    if not isinstance(value, dict):
        hint = "polygons are not read, convert them to run lengths" if isinstance(value, list) else "write run lengths"
        raise LayoutError(f'{where} is {_kind(value)}; {hint}: {{"size": [height, width], "counts": ...}}')
    return value


def _check_colors_differ(regions: Sequence[Region]) -> None:
    first_use: dict[Color, Region] = {}
    for region in regions:
        if region.color is not None and (first := first_use.setdefault(region.color, region)) is not region:
            raise LayoutError(
                f"{region.where}: color {list(region.color)} is also that of {first.field}; give each region its own"
            )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{shown(twice, 30)} appears twice in one object")
    return found


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
