"""Whole pictures and layouts of every kind that is read, for `test_reader_fuzz`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.layout import Layout
from tests.fuzz_damage import Kind, damage, damage_ends, damage_png, damage_values


def pixels() -> np.ndarray:
    picture = np.zeros((16, 20, 3), dtype=np.uint8)
    picture[2:9, 3:12], picture[8:14, 10:19] = [255, 0, 0], [0, 0, 255]
    return picture


def document() -> dict:
    return {
        "caption": "all",
        "seed": 4,
        "segments_info": [
            {"color": [255, 0, 0], "text": "a"},
            {"mask": "mask.png", "text": "b"},
            {"segmentation": {"size": [16, 20], "counts": [20, 30, 270]}, "text": "c"},
            {"segmentation": {"size": [16, 20], "counts": "S28800JJ264000000000000000000]1"}, "text": "d"},
        ],
    }


def encode(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: encode(Image.fromarray(pixels()), "PNG"),
    "palette.png": lambda: encode(Image.fromarray(pixels()).convert("P"), "PNG"),
    "rgba.png": lambda: encode(Image.fromarray(pixels()).convert("RGBA"), "PNG"),
    "grey.png": lambda: encode(Image.fromarray(pixels()).convert("L"), "PNG"),
    "deep.png": lambda: encode(Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257), "PNG"),
    "bit.png": lambda: encode(Image.fromarray(pixels()[..., 0] > 0), "PNG"),
    "photo.jpg": lambda: encode(Image.fromarray(pixels()), "JPEG"),
    "flat.bmp": lambda: encode(Image.fromarray(pixels()), "BMP"),
    "lossless.webp": lambda: encode(Image.fromarray(pixels()), "WEBP"),
    "tagged.tif": lambda: encode(Image.fromarray(pixels()), "TIFF"),
}


def npz_of(save: Callable) -> bytes:
    stream = io.BytesIO()
    save(stream, masks=pixels().transpose(2, 0, 1)[::2] > 0, captions=["a", "b"], caption="c", seed=3)
    return stream.getvalue()


def read_layout(path: Path) -> None:
    layout = Layout.read(path, snap_colors=path.stat().st_size % 2 == 0)
    assert layout.masks.any(axis=(1, 2)).all() and len(layout.captions) == len(layout.masks) > 0


def beside(name: str) -> Callable[[Path], None]:
    """Read the layout that lies beside a damaged picture."""
    return lambda path: read_layout(path.with_name(name))


def pictures() -> Iterator[tuple[str, Kind]]:
    for name, make in PICTURES.items():
        suffix = Path(name).suffix
        how = damage_png if suffix == ".png" else damage
        yield f"colour map {name}", Kind(f"map{suffix}", make(), how, read_layout)
        yield f"mask {name}", Kind(f"mask{suffix}", make(), how, beside(f"one{suffix}.json"))


def layouts() -> Iterator[tuple[str, Kind]]:
    yield "layout", Kind("all.json", json.dumps(document()).encode(), damage_values, read_layout)
    polygon = {"segmentation": [[1, 1, 9, 2, 7.5, 12]], "category_id": 1, "bbox": [1, 1, 8, 11], "image_id": 3}
    coco = {"annotations": [polygon], "images": [{"id": 3, "width": 20, "height": 16}]}
    coco["categories"] = [{"id": 1, "name": "cat"}]
    yield "COCO", Kind("coco.json", json.dumps(coco).encode(), damage_values, read_layout)
    panoptic = {"annotations": [{"file_name": "all.png", "segments_info": [{"id": 255, "text": "a"}]}]}
    yield "panoptic", Kind("panoptic.json", json.dumps(panoptic).encode(), damage_values, read_layout)
    yield "npz", Kind("a.npz", npz_of(np.savez), damage_ends, read_layout)
    yield "compressed npz", Kind("b.npz", npz_of(np.savez_compressed), damage_ends, read_layout)
