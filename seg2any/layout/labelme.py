"""Read and write the JSON of labelme: shapes with labels.

Shapes of one label with one group_id are one region. Later shapes lie on top, as labelme draws them. `caption` and
`seed` at the top are ours; labelme keeps keys that it does not know.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape, check_seed
from seg2any.layout.document import read_json
from seg2any.layout.entries import is_number, kind, read_count
from seg2any.layout.images import ImageError, load_image, opened_image
from seg2any.layout.layout import Layout
from seg2any.layout.polygons import draw_polygons
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write

VERSION = "5.5.0"  # of labelme, whose masks are written
AREAS = ("polygon", "rectangle", "circle", "mask")
CORNERS_OF_CIRCLE = 360
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def is_labelme(document: object) -> bool:
    """Tell whether a JSON is one of labelme."""
    return isinstance(document, dict) and isinstance(document.get("shapes"), list)


def read_labelme(path: Path) -> tuple[Layout, list[str]]:
    """Read a layout, and a line for each thing that it cannot hold. Raises LayoutError."""
    document = read_json(path)
    if not is_labelme(document):
        raise LayoutError(f"{path}: shapes is missing; give a JSON of labelme")
    size = _size(path, document)
    check_mask_shape(str(path), (len(document["shapes"]), *size))
    regions: dict[object, tuple[str, np.ndarray]] = {}
    left_out = []
    for number, shape in enumerate(document["shapes"]):
        where = f"{path}: shapes[{number}]"
        if not isinstance(shape, dict):
            raise LayoutError(f"{where} is {kind(shape)}; write an object with label and points")
        form = shape.get("shape_type") or "polygon"
        if form in WITHOUT_AREA:
            left_out.append(f"{where} is a {form}, which has no area, and is left out")
            continue
        check_caption(f"{where}: label", shape.get("label"))
        mask = _mask(where, form, shape, size)
        group = shape.get("group_id")
        key = number if group is None else (shape["label"], str(group))
        label, before = regions.get(key, (shape["label"], np.zeros(size, dtype=bool)))
        regions[key] = label, before | mask
    if not regions:
        raise LayoutError(f"{path}: no shape has an area; draw polygons, rectangles, circles or masks")
    caption, seed = document.get("caption"), document.get("seed")
    if caption is not None:
        check_caption(f"{path}: caption", caption)
    if seed is not None:
        check_seed(f"{path}: seed", seed)
    labels, masks = zip(*regions.values(), strict=True)
    return Layout(np.stack(masks), labels, caption, seed, path.stem), left_out + _unread(path, document)


def write_labelme(layout: Layout, path: Path) -> None:
    """Write a layout with one mask per region. Raises LayoutError for a region without a pixel."""
    shapes = [
        {
            "label": text,
            "points": [[left, top], [right, bottom]],
            "group_id": None,
            "description": "",
            "shape_type": "mask",
            "flags": {},
            "mask": _encoded(mask[top : bottom + 1, left : right + 1]),
        }
        for text, mask in zip(layout.captions, layout.masks, strict=True)
        for left, top, right, bottom in [bounds(mask)]
    ]
    own = {"caption": layout.caption, "seed": layout.seed}
    document = {
        "version": VERSION,
        "flags": {},
        **{key: value for key, value in own.items() if value is not None},
        "shapes": shapes,
        "imagePath": f"{layout.name}.png",
        "imageData": None,
        "imageHeight": layout.size[0],
        "imageWidth": layout.size[1],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom pixel of a mask, bool [H, W] with a pixel; all included."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _size(path: Path, document: Mapping) -> tuple[int, int]:
    sides = [document.get(name) for name in ("imageHeight", "imageWidth")]
    if None not in sides:
        size = tuple(
            read_count(f"{path}: {name}", side) for name, side in zip(("imageHeight", "imageWidth"), sides, strict=True)
        )
    else:
        name = document.get("imagePath")
        picture = path.parent / Path(name.replace("\\", "/")).name if isinstance(name, str) else None
        if picture is None or not picture.is_file():
            raise LayoutError(f"{path}: imageHeight and imageWidth are missing; add the size of the image")
        try:
            size = load_image(picture).size[::-1]
        except ImageError as error:
            raise LayoutError(f"{picture}: {error}") from None
    if 0 in size:
        raise LayoutError(f"{path}: the image is {size[1]}x{size[0]}; write its size in pixels")
    check_mask_shape(str(path), (1, *size))
    return size


def _mask(where: str, form: object, shape: Mapping, size: tuple[int, int]) -> np.ndarray:
    points = shape.get("points")
    is_list = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points
    )
    if not is_list:
        raise LayoutError(f"{where}: points are {shown(points)}; write [[x, y], ...]")
    needed = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(form) if isinstance(form, str) else None
    if needed is None:
        raise LayoutError(f"{where}: shape_type is {shown(form)}; use one of {', '.join(AREAS)}")
    if len(points) < needed:
        raise LayoutError(f"{where}: a {form} has {len(points)} points; give {needed}")
    if form == "mask":
        return _placed(where, shape.get("mask"), points, size)
    (x0, y0), (x1, y1) = points[:2]
    if form == "rectangle":
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif form == "circle":
        points = ellipse((x0, y0), (math.hypot(x1 - x0, y1 - y0),) * 2)
    return draw_polygons(where, [[value for point in points for value in point]], size)


def ellipse(center: tuple[float, float], radii: tuple[float, float], turn: float = 0) -> list[tuple[float, float]]:
    """Return the corners of a polygon like an ellipse; `turn` in degrees, clockwise on the screen."""
    (x, y), (a, b), angle = center, radii, math.radians(turn)
    steps = (2 * math.pi * n / CORNERS_OF_CIRCLE for n in range(CORNERS_OF_CIRCLE))
    spots = ((a * math.cos(step), b * math.sin(step)) for step in steps)
    return [
        (x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle)) for u, v in spots
    ]


def _placed(where: str, text: object, points: list, size: tuple[int, int]) -> np.ndarray:
    """Decode the base64 PNG of a mask, and put it into a mask of the image's size."""
    try:
        with opened_image(BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            part = np.asarray(image.convert("L")) > 0
    except (ImageError, TypeError, ValueError, binascii.Error) as error:
        raise LayoutError(f"{where}: mask is no PNG in base64 ({shown(str(error), 80)}); save it again") from None
    left, top = (round(value) for value in points[0])
    bottom, right = top + part.shape[0], left + part.shape[1]
    mask = np.zeros(size, dtype=bool)
    if min(left, top) < 0 or bottom > size[0] or right > size[1]:
        raise LayoutError(f"{where}: mask reaches out of the image of {size[1]}x{size[0]}; correct its points")
    mask[top:bottom, left:right] = part
    if not mask.any():
        raise LayoutError(f"{where}: mask has no pixel; remove the shape")
    return mask


def _encoded(part: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(part).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _unread(path: Path, document: Mapping) -> list[str]:
    """Name what labelme holds beside shapes, labels and groups."""
    found = []
    if any(document.get("flags") or {}) or any(shape.get("flags") for shape in document["shapes"]):
        found.append("flags")
    if any(str(shape.get("description") or "").strip() for shape in document["shapes"]):
        found.append("descriptions")
    if document.get("imageData"):
        found.append("the image itself")
    return [f"{path}: not carried over: {', '.join(found)}"] if found else []
