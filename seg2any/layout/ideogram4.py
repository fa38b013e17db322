"""JSON captions of Ideogram 4: a description, the background, and elements with boxes.

    {"high_level_description": "A meadow.", "compositional_deconstruction": {"background": "grass", "elements": [
        {"type": "obj", "bbox": [200, 100, 800, 450], "desc": "a black cat"},
        {"type": "text", "bbox": [0, 0, 100, 1000], "text": "MEADOW", "desc": "white capitals"}]}}

Documented (docs.ideogram.ai, "JSON prompting", docs/prompting.md of the published code, and diffusers): the keys and
their order, the grid of `grid_boxes`, boxes and palettes being optional, elements of type obj and text, and a required
background. Readings of ours: elements go from the back to the front, and a text's caption is its description with the
words in quotes. Layouts have no place for background, style and palettes, which are named when they are lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape
from seg2any.layout.entries import kind
from seg2any.layout.grid_boxes import box_mask, check_box, grid_box
from seg2any.layout.layout import Layout
from seg2any.system.errors import shown

PARTS = "compositional_deconstruction"
WRAPPER = "json_prompt"  # of the body of a request
QUOTED = re.compile(r'^(?P<desc>.*?),? the text "(?P<text>.+)"$', re.DOTALL)


def is_ideogram4(document: object) -> bool:
    """Tell whether a JSON is such a caption, or the body of a request with one."""
    if not isinstance(document, dict):
        return False
    inner = document.get(WRAPPER)
    return PARTS in document or (isinstance(inner, dict) and PARTS in inner)


def write_json_caption(layout: Layout) -> dict:
    """Build the caption of a layout; every mask has a pixel. The background is left empty."""
    elements = [_element(caption, grid_box(mask)) for caption, mask in zip(layout.captions, layout.masks, strict=True)]
    head = {} if layout.caption is None else {"high_level_description": layout.caption}
    return {**head, PARTS: {"background": "", "elements": elements}}


def write_ideogram4(layout: Layout) -> str:
    """Write the caption of a layout on one line, as the model reads it."""
    return json.dumps(write_json_caption(layout), ensure_ascii=False, separators=(",", ":"))


def read_ideogram4(path: Path, document: Mapping, size: tuple[int, int]) -> tuple[Layout, list[str]]:
    """Read a layout of `size` (H, W) and lines about what it cannot hold. Raises LayoutError."""
    document = document if PARTS in document else document[WRAPPER]
    parts = document[PARTS]
    if not isinstance(parts, dict) or not isinstance(parts.get("elements"), list) or not parts["elements"]:
        raise LayoutError(f"{path}: {PARTS} has no list of elements; write at least one")
    check_mask_shape(str(path), (len(parts["elements"]), *size))
    captions, masks, lost = [], [], []
    for number, element in enumerate(parts["elements"], start=1):
        where = f"{path}: element {number}"
        if not isinstance(element, dict):
            raise LayoutError(f"{where} is {kind(element)}; write an object with type, bbox and desc")
        caption = _caption(where, element)
        if element.get("bbox") is None:
            lost.append(f"{where} ({shown(caption, 40)}) has no bbox, and is left out")
            continue
        captions.append(caption)
        masks.append(box_mask(check_box(f"{where}: bbox", element["bbox"]), size))
    if not masks:
        raise LayoutError(f"{path}: no element has a bbox; place at least one")
    caption = document.get("high_level_description")
    if caption is not None:
        check_caption(f"{path}: high_level_description", caption)
    return Layout(np.stack(masks), tuple(captions), caption, name=path.stem), lost + _unread(path, document, parts)


def _element(caption: str, box: list[int]) -> dict:
    found = QUOTED.match(caption)
    if found is None:
        return {"type": "obj", "bbox": box, "desc": caption}
    return {"type": "text", "bbox": box, "text": found["text"], "desc": found["desc"]}


def _caption(where: str, element: Mapping) -> str:
    sort, desc = element.get("type", "obj"), element.get("desc", "")
    if sort not in ("obj", "text"):
        raise LayoutError(f"{where}: type is {shown(sort)}; write obj or text")
    if sort == "obj":
        check_caption(f"{where}: desc", desc)
        return desc
    check_caption(f"{where}: text", element.get("text"))
    quoted = f'the text "{element["text"]}"'
    if not isinstance(desc, str):
        raise LayoutError(f"{where}: desc is {shown(desc)}; write a string")
    return f"{desc.strip()}, {quoted}" if desc.strip() else quoted


def _unread(path: Path, document: Mapping, parts: Mapping) -> list[str]:
    found = ["the background"] if str(parts.get("background") or "").strip() else []
    if document.get("style_description"):
        found.append("the style")
    if any(element.get("color_palette") for element in parts["elements"]):
        found.append("palettes")
    return [f"{path}: not carried over: {', '.join(found)}"] if found else []
