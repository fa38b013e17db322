"""Read and write "CVAT for images 1.1": one XML with the shapes of many images.

Shapes lie on top of each other by z_order, then in the order of the file. Shapes of one label with one group_id are one
region. Entities and document types are refused: a small file could make them grow to gigabytes, or name other files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape
from seg2any.layout.labelme import bounds, ellipse
from seg2any.layout.layout import Layout
from seg2any.layout.polygons import draw_polygons
from seg2any.layout.rle import encode_rle
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write
from seg2any.system.limits import limits

AREAS = ("box", "polygon", "ellipse", "mask")
WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
CAPTIONS = ("caption", "text")  # names of attributes that hold a shape's caption; without one its label counts


@dataclass
class _Shape:
    form: str
    values: Mapping[str, str]
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass
class _Image:
    values: Mapping[str, str]
    shapes: list[_Shape] = field(default_factory=list)


def read_cvat(path: Path) -> list[tuple[Layout, list[str]]]:
    """Read the layout of every image that has a shape, each with lines about what it cannot hold.

    Raises LayoutError.
    """
    found = [_layout(path, image) for image in _Reader(path).images if any(_areas(image))]
    if not found:
        raise LayoutError(f"{path}: no image has a shape with an area; give a file of CVAT for images 1.1")
    return found


def write_cvat(layouts: list[Layout], path: Path) -> None:
    """Write the layouts as masks, later regions above earlier ones. Raises LayoutError for masks without a pixel."""
    labels = dict.fromkeys(text for layout in layouts for text in layout.captions)
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <task>", "      <labels>"]
    lines += [f"        <label><name>{quoteattr(text)[1:-1]}</name><type>mask</type></label>" for text in labels]
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, layout in enumerate(layouts):
        height, width = layout.size
        name = quoteattr(f"{layout.name}.png")
        lines.append(f'  <image id="{number}" name={name} width="{width}" height="{height}">')
        for order, (text, mask) in enumerate(zip(layout.captions, layout.masks, strict=True)):
            left, top, right, bottom = bounds(mask)
            # row by row, and so the columns of the transposed mask
            runs = ", ".join(map(str, encode_rle(mask[top : bottom + 1, left : right + 1].T)["counts"]))
            box = f'left="{left}" top="{top}" width="{right - left + 1}" height="{bottom - top + 1}"'
            lines.append(
                f'    <mask label={quoteattr(text)} source="manual" occluded="0" rle="{runs}" {box} z_order="{order}">'
                "</mask>"
            )
        lines.append("  </image>")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join([*lines, "</annotations>", ""]), encoding="utf-8")


class _Reader:
    """Collect images, shapes and attributes while expat reads the file."""

    def __init__(self, path: Path):
        self.path, self.images, self._open = path, [], []
        self._text: list[str] = []
        self._attribute = ""  # the name of the one that is open
        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text.append
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = self._refuse
        try:
            if path.stat().st_size > (most := limits().json_bytes):
                raise LayoutError(f"{path}: is larger than {most >> 20} MiB; export fewer images at a time")
            with open(path, "rb") as file:
                parser.ParseFile(file)
        except OSError as error:
            raise LayoutError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
        except expat.ExpatError as error:
            raise LayoutError(f"{path}: is no XML ({shown(str(error), 80)}); export it again") from None

    def _start(self, name: str, values: dict[str, str]) -> None:
        if not self._open and name != "annotations":
            raise LayoutError(f"{self.path}: begins with {shown(name)}; give a file of CVAT for images 1.1")
        self._open.append(name)
        if len(self._open) > limits().depth:
            raise LayoutError(f"{self.path}: is nested too deeply; export it again")
        self._text.clear()
        if name == "image":
            self.images.append(_Image(values))
        elif name == "track":
            raise LayoutError(f"{self.path}: is CVAT for video; export it as CVAT for images 1.1")
        elif self._open[1:-1] == ["image"] and name in (*AREAS, *WITHOUT_AREA):
            self.images[-1].shapes.append(_Shape(name, values))
        elif name == "attribute" and self._open[1:2] == ["image"] and self.images[-1].shapes:
            self._attribute = values.get("name", "")

    def _end(self, name: str) -> None:
        if name == "attribute" and self._open[1:2] == ["image"] and self.images[-1].shapes:
            self.images[-1].shapes[-1].attributes[self._attribute] = "".join(self._text).strip()
        self._open.pop()

    def _refuse(self, *declared: object) -> None:
        raise LayoutError(f"{self.path}: declares a document type or an entity, which CVAT never does; export it again")


def _areas(image: _Image) -> list[_Shape]:
    return [shape for shape in image.shapes if shape.form in AREAS]


def _layout(path: Path, image: _Image) -> tuple[Layout, list[str]]:
    name = image.values.get("name", "")
    where = f"{path}: image {shown(name)}"
    size = tuple(_whole(where, image.values, side) for side in ("height", "width"))
    if 0 in size:
        raise LayoutError(f"{where}: is {size[1]}x{size[0]}; write its size in pixels")
    check_mask_shape(where, (len(_areas(image)), *size))
    regions: dict[object, tuple[str, np.ndarray]] = {}
    numbered = sorted(enumerate(_areas(image)), key=lambda pair: _whole(where, pair[1].values, "z_order", 0))
    for number, shape in numbered:
        place = f"{where}: shape {number + 1} ({shape.form})"
        text = next((shape.attributes[key] for key in CAPTIONS if shape.attributes.get(key)), shape.values.get("label"))
        check_caption(f"{place}: label", text)
        group = shape.values.get("group_id", "0")
        key = number if group in ("", "0") else (text, group)
        _, before = regions.get(key, (text, np.zeros(size, dtype=bool)))
        regions[key] = text, before | _mask(place, shape, size)
    captions, masks = zip(*regions.values(), strict=True)
    stem = Path(name.replace("\\", "/")).stem or path.stem
    return Layout(np.stack(masks), captions, name=stem), _unread(where, image)


def _mask(where: str, shape: _Shape, size: tuple[int, int]) -> np.ndarray:
    values = shape.values
    if shape.form == "mask":
        return _from_runs(where, values, size)
    turn = _real(where, values, "rotation", 0)
    if shape.form == "polygon":
        points = [tuple(map(_number(where, "points"), pair.split(","))) for pair in values.get("points", "").split(";")]
        if len(points) < 3 or any(len(point) != 2 for point in points):
            raise LayoutError(f"{where}: points are {shown(values.get('points', ''))}; write x,y;x,y;x,y")
    elif shape.form == "ellipse":
        cx, cy, rx, ry = (_real(where, values, name) for name in ("cx", "cy", "rx", "ry"))
        points = ellipse((cx, cy), (rx, ry), turn)
    else:
        left, top, right, bottom = (_real(where, values, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        points = _turned([(left, top), (right, top), (right, bottom), (left, bottom)], turn)
    return draw_polygons(where, [[value for point in points for value in point]], size)


def _turned(points: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    """Turn the corners of a box around its middle, clockwise on the screen."""
    x, y = ((points[0][axis] + points[2][axis]) / 2 for axis in (0, 1))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x + (u - x) * cos - (v - y) * sin, y + (u - x) * sin + (v - y) * cos) for u, v in points]


def _from_runs(where: str, values: Mapping[str, str], size: tuple[int, int]) -> np.ndarray:
    """Draw runs of pixels outside and inside in turn, row by row in a box."""
    left, top, width, height = (_whole(where, values, name) for name in ("left", "top", "width", "height"))
    if left + width > size[1] or top + height > size[0]:
        raise LayoutError(f"{where}: reaches out of the image of {size[1]}x{size[0]}; export it again")
    try:
        runs = np.array([int(run) for run in values.get("rle", "").split(",")], dtype=np.int64)
    except (ValueError, OverflowError):
        raise LayoutError(f"{where}: rle is {shown(values.get('rle', ''))}; write run lengths") from None
    if (runs < 0).any() or (runs > width * height).any() or runs.sum() != width * height:
        raise LayoutError(f"{where}: rle does not cover the box of {width}x{height}; export it again")
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
        height, width
    )
    if not mask.any():
        raise LayoutError(f"{where}: has no pixel; remove it")
    return mask


def _whole(where: str, values: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = values.get(name, "" if default is None else str(default))
    if not text.strip().lstrip("-").isdecimal() or len(text) > 9 or (int(text) < 0 and name != "z_order"):
        raise LayoutError(f"{where}: {name} is {shown(text)}; write a whole number")
    return int(text)


def _real(where: str, values: Mapping[str, str], name: str, default: float | None = None) -> float:
    return _number(where, name)(values.get(name, "" if default is None else str(default)))


def _number(where: str, name: str):
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < 2**31:
            raise LayoutError(f"{where}: {name} is {shown(text)}; write numbers in pixels")
        return value

    return parse


def _unread(where: str, image: _Image) -> list[str]:
    """Name what CVAT holds beside areas, labels and groups."""
    forms = sorted({shape.form for shape in image.shapes if shape.form in WITHOUT_AREA})
    others = sorted({name for shape in _areas(image) for name in shape.attributes} - {*CAPTIONS})
    found = [f"{form} (no area)" for form in forms] + [f"attribute {shown(name)}" for name in others]
    return [f"{where}: not carried over: {', '.join(found)}"] if found else []
