"""Read and write the JSON of a layout, with strict types, so that errors name the field."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from seg2any.layout.checks import LayoutError, LayoutParts, LayoutWarning, check_caption, check_seed
from seg2any.layout.coco import read_annotations, read_image, read_names
from seg2any.layout.collection import Collection, collect, split_reference
from seg2any.layout.entries import (
    DOCUMENT_KEYS,
    IMAGE_MEANT,
    Annotation,
    Color,
    Region,
    kind,
    misspelt,
    read_name,
    read_region,
    warn_of_keys,
)
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write
from seg2any.system.json_text import TooDeep, check_text
from seg2any.system.limits import limits


def read_annotation(path: Path) -> Annotation:
    """Read and check a layout's JSON.

    path  of the file, or NAME.json#ID, see `seg2any.layout.collection`

    Raises LayoutError. Warns with LayoutWarning of keys that nothing reads.
    """
    document, numbers = _document_of(path)
    if not isinstance(document, dict):
        raise LayoutError(f"{path}: is {kind(document)}; write an object with segments_info")
    image = read_image(path, document)
    field = "annotations" if "annotations" in document and "segments_info" not in document else "segments_info"
    entries = document.get(field)
    if not isinstance(entries, list):
        near = misspelt(document, ("segments_info", "annotations"), DOCUMENT_KEYS, IMAGE_MEANT)
        state = f"is {kind(entries)}" if field in document else f"is missing{near}"
        raise LayoutError(f"{path}: {field} {state}; write a list of regions, each with color and text")
    if not entries and document.get("empty") != []:
        raise LayoutError(
            f'{path}: {field} is empty; a layout needs at least one region, or "empty": [] if none is meant'
        )
    if not entries:
        annotation = Annotation((), None, None, size=image.size)
    elif field == "annotations":
        annotation = read_annotations(path, document, entries, image, numbers)
    else:
        names, picture = read_names(path, document), document.get("file_name")
        regions = (
            read_region(f"{path}: {field}[{n}]", entry, names, picture is not None) for n, entry in enumerate(entries)
        )
        annotation = Annotation(tuple(regions), None, None, size=image.size)
        if any(region.segment is not None for region in annotation.regions):
            annotation = replace(annotation, panoptic=read_name(f"{path}: file_name", picture))
    _check_colors_differ(annotation.regions)
    caption, seed = document.get("caption"), document.get("seed")
    if caption is not None:
        check_caption(f"{path}: caption", caption)
    if seed is not None:
        check_seed(f"{path}: seed", seed)
    warn_of_keys(path, document, entries)
    if field == "segments_info" and "annotations" in document:
        text = f"{path}: annotations are not read, because there is segments_info; remove one of them"
        warnings.warn(text, LayoutWarning, stacklevel=3)
    source = document.get("source")
    source = source if isinstance(source, str) and source.strip() else ""
    return replace(annotation, caption=caption, seed=seed, source=source, scores=_scores_of(entries))


def _scores_of(entries: Sequence[dict]) -> tuple[float, ...] | None:
    """Return the scores of all regions; None unless each has one in 0..1, as our own files do."""
    scores = [entry.get("score") for entry in entries]
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one <= 1 for one in scores):
        return None
    return tuple(scores)


def open_collection(path: Path) -> Collection | None:
    """Read a file of several images; None for other files. The last file is kept. Raises LayoutError."""
    try:
        about = path.stat()
    except OSError as error:
        raise LayoutError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from error
    return _kept_collection(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)  # else every layout of a large file would parse all of it
def _kept_collection(path: Path, *_: int) -> Collection | None:
    return collect(path, read_json(path))


def _document_of(path: Path) -> tuple[object, Sequence[int] | None]:
    """Return the JSON of one image and the places of its annotations in the file, None if all are its own."""
    file, id = split_reference(path)
    if id is None:
        return read_json(path), None
    collection = open_collection(file)
    if collection is None:
        raise LayoutError(f"{path}: {file.name} is not of several images; give {file} itself")
    if id not in collection.images:
        known = ", ".join(list(collection.images)[:4])
        raise LayoutError(f"{path}: no image has the id {shown(id)}; the ids are {known}, ...")
    if id not in collection.numbers:
        raise LayoutError(f"{path}: the image has no annotations; choose another one")
    return collection.document_of(id), collection.numbers[id]


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises LayoutError, also for NaN, Infinity and a name that appears twice in one object.
    """
    try:
        if path.stat().st_size > (most := limits().json_bytes):
            raise LayoutError(f"{path}: is larger than {most >> 20} MiB; write one JSON per image")
        return decode_json(path.read_bytes())
    except LayoutError:
        raise
    except OSError as error:
        raise LayoutError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except TooDeep as error:
        raise LayoutError(f"{path}: is nested too deeply; write segments_info as a plain list") from error
    except ValueError as error:
        raise LayoutError(f"{path}: is not valid JSON ({shown(str(error), 120)}); correct it") from error


def decode_json(data: bytes) -> object:
    """Parse UTF-8 `data` as strictly as `read_json`. Raises ValueError."""
    check_text(data)
    return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)


def write_annotation(layout: LayoutParts, colors: Sequence[Color], path: Path) -> None:
    """Write the published JSON for a colour map with these colours, one line per region.

    Scores, source and `empty`, of a layout without regions, are keys of their own, which the published code does not
    read.
    """
    head = {name: value for name in ("caption", "seed", "source") if (value := getattr(layout, name)) not in (None, "")}
    regions = [{"color": color, "text": text} for color, text in zip(colors, layout.captions, strict=True)]
    if layout.scores is not None:
        regions = [region | {"score": round(float(one), 4)} for region, one in zip(regions, layout.scores, strict=True)]
    fields = [f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head.items()]
    entries = ",\n".join(f"    {json.dumps(region, ensure_ascii=False)}" for region in regions)
    fields.append(f'  "segments_info": [\n{entries}\n  ]' if regions else '  "segments_info": [],\n  "empty": []')
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


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
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{shown(twice, 30)} appears twice in one object")
    return found
