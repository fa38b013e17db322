"""Layout captions of FLUX 3: a paragraph that cites elements as <id>, then a JSON array that places each in a box.

    A meadow at dawn with a black cat <cat_1>. [{"id": "cat_1", "bbox": [200, 100, 800, 450], "desc": "a black cat"}]

Documented (docs.bfl.ai, "Bounding boxes", and diffusers' prompt upsampler): this form, the grid of `grid_boxes`, ids of
a lowercase noun and a number, rows with id, bbox and desc, every id cited. A reading of ours: rows go from the back to
the front, as in the documented example; nothing says how boxes that overlap are meant. Rows of edits are read by their
box in the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape
from seg2any.layout.document import decode_json
from seg2any.layout.grid_boxes import box_mask, check_box, grid_box
from seg2any.layout.layout import Layout
from seg2any.system.errors import shown
from seg2any.system.nouns import head_noun

ID = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
CITATION = re.compile(r"\s*<([A-Za-z][A-Za-z0-9_]*)>")
ALSO = "Also in the picture: "  # begins the sentence that cites what the caption does not name
ONLY = "In the picture: "  # the same without a caption
MOST_TRIED = 64  # places of a text where the array may begin


def write_caption(layout: Layout) -> str:
    """Write a layout caption on one line. Every mask has a pixel."""
    ids, rows, paragraph, uncited = _ids(layout), [], " ".join((layout.caption or "").split()), []
    for id, caption, mask in zip(ids, layout.captions, layout.masks, strict=True):
        text = " ".join(caption.split())
        rows.append({"id": id, "bbox": grid_box(mask), "desc": caption})
        place = _free_place(paragraph, text)
        if place is None:
            uncited.append(f"{text} <{id}>")
        else:
            paragraph = f"{paragraph[:place]} <{id}>{paragraph[place:]}"
    if uncited:
        paragraph = f"{paragraph} {ALSO if paragraph else ONLY}{'; '.join(uncited)}.".strip()
    return f"{paragraph} {json.dumps(rows, ensure_ascii=False)}"


def split_caption(text: str) -> tuple[str, list] | None:
    """Split a caption into paragraph and rows; None for a text that does not end in a JSON array of objects."""
    text = text.strip()
    for place in islice((found.start() for found in re.finditer(r"\[\s*[{\]]", text)), MOST_TRIED):
        try:
            rows = decode_json(text[place:].encode())
        except ValueError:
            continue
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return text[:place].strip(), rows
    return None


def parse_caption(where: str, text: str, size: tuple[int, int], name: str) -> tuple[Layout, list[str]]:
    """Read a layout of `size` (H, W) and lines about what it cannot hold. Raises LayoutError."""
    parts = split_caption(text)
    if parts is None or not parts[1]:
        raise LayoutError(f"{where}: does not end in a JSON array of boxes; give a layout caption of FLUX 3")
    paragraph, rows = " ".join(parts[0].split()), parts[1]
    check_mask_shape(where, (len(rows), *size))
    regions: dict[str, tuple[str, np.ndarray]] = {}
    left_out = []
    for number, row in enumerate(rows):
        at = f"{where}: row {number + 1}"
        id, desc = row.get("id"), row.get("desc")
        if not isinstance(id, str) or not ID.fullmatch(id):
            raise LayoutError(f"{at}: id is {shown(id)}; write letters and a number, such as cat_1")
        if id in regions:
            raise LayoutError(f"{at}: id {id} is that of an earlier row; give each row its own")
        check_caption(f"{at}: desc", desc)
        box = _box_of(at, row)
        if box is None:
            left_out.append(f"{at}: {id} is not in the result of the edit, and is left out")
            continue
        regions[id] = desc, box_mask(box, size)
    if not regions:
        raise LayoutError(f"{where}: no row has a box in the picture; write bbox")
    left_out += [f"{where}: <{id}> is cited and has no row" for id in CITATION.findall(paragraph) if id not in regions]
    captions, masks = zip(*regions.values(), strict=True)
    return Layout(np.stack(masks), captions, _uncited(paragraph, regions), name=name), left_out


def read_flux3(path: Path, text: str, size: tuple[int, int]) -> tuple[Layout, list[str]]:
    """Read the caption in a file as `parse_caption` does."""
    return parse_caption(str(path), text, size, path.stem)


def _box_of(where: str, row: Mapping) -> Sequence[float] | None:
    """Return the box of a row; None for an element that an edit removes."""
    if "bbox" in row:
        return check_box(f"{where}: bbox", row["bbox"])
    if "tgt_bbox" not in row:
        raise LayoutError(f"{where}: bbox is missing; place the element")
    return None if row["tgt_bbox"] is None else check_box(f"{where}: tgt_bbox", row["tgt_bbox"])


def _ids(layout: Layout) -> list[str]:
    """Name the regions by noun, numbered from left to right and top to bottom."""
    nouns = []
    for caption in layout.captions:
        noun = re.sub(r"[^a-z]", "", head_noun(caption))
        nouns.append(noun or "obj")
    boxes = [grid_box(mask) for mask in layout.masks]
    numbers: dict[int, int] = {}
    counted: dict[str, int] = {}
    for index in sorted(range(len(nouns)), key=lambda index: (boxes[index][1], boxes[index][0], index)):
        counted[nouns[index]] = numbers[index] = counted.get(nouns[index], 0) + 1
    return [f"{noun}_{numbers[index]}" for index, noun in enumerate(nouns)]


def _free_place(paragraph: str, text: str) -> int | None:
    """Find where the paragraph names `text` and cites nothing behind it: the place behind the words."""
    for found in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", paragraph, re.IGNORECASE):
        if not CITATION.match(paragraph, found.end()):
            return found.end()
    return None


def _uncited(paragraph: str, regions: Mapping[str, tuple[str, np.ndarray]]) -> str | None:
    """Return the paragraph without ids, and without the sentence of `write_caption`; None if nothing is left."""
    for beginning in (ALSO, ONLY):
        before, found, sentence = paragraph.rpartition(beginning)
        for id, (desc, _) in regions.items():
            sentence = sentence.replace(f"{' '.join(desc.split())} <{id}>", "")
        if found and not sentence.strip("; ."):
            paragraph = before
            break
    return " ".join(CITATION.sub("", paragraph).split()) or None
