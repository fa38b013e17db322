"""Read captions from a file: a table as SACap's, or lines of JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seg2any.annotate.captions import Known
from seg2any.annotate.draft import Draft
from seg2any.data.caption_table import CaptionTable
from seg2any.system.errors import UserError, shown
from seg2any.system.json_text import lines_of, parse_json

BOM = b"\xef\xbb\xbf"  # some editors begin a file with it


def open_captions(path: Path) -> Callable[[Draft], Known | None]:
    """Return a function that looks up the captions of a draft; None where the file has none.

    A parquet has the columns of SACap-1M, and its rows are found by the name of the photo's file. A line of JSON is
    {"image": KEY, "caption": TEXT, "regions": {ID: TEXT, ...}}, where KEY is the photo's path below IMAGES.
    Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .parquet as SACap's, or a .jsonl")
    if path.suffix == ".parquet":
        return _open_table(path)
    lines: dict[str, Known] = {}
    try:
        for number, (_, line) in enumerate(lines_of(path), start=1):
            if text := line.removeprefix(BOM).strip():
                key, known = _read_line(f"{path}: line {number}", text)
                if key in lines:
                    raise UserError(f"{path}: line {number}: {shown(key)} has captions already; keep one line")
                lines[key] = known
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}; split it") from None
    return lambda draft: lines.get(draft.photo.key)


def _open_table(path: Path) -> Callable[[Draft], Known | None]:
    table = CaptionTable(path, None)
    names, groups = (table.columns[name].to_pylist() for name in ("imagename", "image_group"))
    places = {(group, name): number for number, (group, name) in enumerate(zip(groups, names, strict=True))}
    faults = table.columns["fault"].to_pylist()

    def known(draft: Draft) -> Known | None:
        file = Path(draft.photo.path)
        number = places.get((file.parent.name, file.name), places.get(("", file.name)))
        if number is None or faults[number]:
            return None
        row = table.row(number)
        return Known(row.caption, dict(zip(row.anno_ids, row.captions, strict=True)))

    return known


def _read_line(where: str, line: bytes) -> tuple[str, Known]:
    try:
        entry = parse_json(line)
        key, caption, regions = entry["image"], entry.get("caption"), entry["regions"]
        texts = {int(number): text for number, text in regions.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{where}: is no {{"image": .., "caption": .., "regions": {{"1": ..}}}}; correct it') from None
    if not isinstance(key, str) or not isinstance(caption, str | None) or not all(map(_is_text, texts.values())):
        raise UserError(f"{where}: image, caption and regions are not all texts; write texts in quotes")
    return key, Known(caption, texts)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
