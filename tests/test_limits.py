"""The limits of what a file may cost: each is exceeded by a small file, which is refused in one line."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.system.confined import confined
from seg2any.system.errors import UserError
from seg2any.system.json_text import parse_json
from seg2any.system.limits import OWN, STRICT, Limits, limited, limits

SQUARE = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "text": "a"}


def document(folder: Path, regions: list[dict], **more: object) -> Path:
    (folder / "x.json").write_text(json.dumps({"annotations": regions, "width": 8, "height": 8, **more}))
    return folder / "x.json"


def masks_of(folder: Path, count: int, side: int) -> Path:
    """Write headers that claim masks, which are refused before their data is missed."""
    return npz(folder / "x.npz", masks_npy=npy((count, side, side), b""), captions_npy=CAPTIONS)


def picture(folder: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(folder / "x.png")
    (folder / "x.json").write_text(json.dumps({"segments_info": [{"color": pixels[0, 0].tolist(), "text": "a"}]}))
    return folder / "x.json"


def colors(count: int) -> np.ndarray:
    values = np.arange(count, dtype=np.uint32)
    return np.stack([values & 255, values >> 8, values * 0], -1)[None].astype(np.uint8)


def ragged(points: int) -> list[float]:
    return np.stack([np.arange(points) % 7, np.arange(points) // 7 % 7], 1).astype(float).reshape(-1).tolist()


def soft_edges(folder: Path) -> Path:
    """Draw bars of 30 colours that pass softly into each other."""
    count, side, width = 30, 1080, 36
    colors = np.stack([np.arange(count) % 3 * 120, np.arange(count) // 3 % 3 * 120, np.arange(count) // 9 * 80], -1)
    bars = colors[np.arange(side) // width]
    bars[::width] = (bars[::width] + np.roll(bars, 1, 0)[::width]) // 2
    Image.fromarray(np.tile(bars.astype(np.uint8), (side, 1, 1))).save(folder / "x.png")
    regions = [{"color": color.tolist(), "text": "a"} for color in colors]
    (folder / "x.json").write_text(json.dumps({"segments_info": regions}))
    return folder / "x.json"


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "json_bytes": (lambda folder: document(folder, [SQUARE], note="x" * STRICT.json_bytes), "is larger than 2 MiB"),
    "depth": (lambda folder: document(folder, [SQUARE], note=json.loads("[" * 40 + "]" * 40)), "nested too deeply"),
    "characters": (
        lambda folder: document(folder, [{**SQUARE, "text": "a" * 2001}]),
        "2001 characters, more than 2000",
    ),
    "regions": (lambda folder: document(folder, [SQUARE] * 64), "64 regions, more than 63"),
    "points": (lambda folder: document(folder, [{**SQUARE, "segmentation": [ragged(2**15 + 1)]}]), "32769 points"),
    "pixels": (lambda folder: document(folder, [SQUARE], width=4096, height=1025), "more than 4 megapixels"),
    "mask_bytes": (lambda folder: masks_of(folder, 40, 1840), "40 masks of 1840x1840 need more than 128 MiB"),
    "colors": (lambda folder: picture(folder, colors(2**13 + 1)), "8193 colours, more than 8192, as a photo"),
    "snapped": (soft_edges, "soft edges of 1080x1080 pixels to the nearest of 30 colours takes too long"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_small_file_that_exceeds_a_limit_is_refused_at_once(name: str, tmp_path: Path):
    make, told = FILES[name]
    path = make(tmp_path)
    assert path.stat().st_size < 4 << 20
    start = time.process_time()
    with limited(STRICT), pytest.raises(LayoutError, match=told) as error:
        Layout.read(path)
    assert time.process_time() - start < 2 and "\n" not in str(error.value)


def test_ones_own_files_may_be_larger(tmp_path: Path):
    assert all(getattr(OWN, each.name) >= getattr(STRICT, each.name) for each in fields(Limits))
    assert limits() is OWN
    long = {**SQUARE, "text": "a" * 2001}
    assert len(Layout.read(document(tmp_path, [long] * 64, note=json.loads("[" * 40 + "]" * 40))).masks) == 64
    with pytest.raises(LayoutError, match="10001 characters"):
        Layout.read(document(tmp_path, [{**SQUARE, "text": "a" * 10_001}]))


def test_limits_end_with_their_block_even_after_an_error():
    with pytest.raises(KeyError), limited(STRICT):
        assert limits() is STRICT
        raise KeyError
    assert limits() is OWN


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_the_bytes_of_a_file_are_looked_at_before_it_is_opened(suffix: str, tmp_path: Path):
    path = picture(tmp_path, colors(3)) if suffix == ".png" else masks_of(tmp_path, 1, 8)
    with limited(replace(STRICT, file_bytes=50)), pytest.raises(LayoutError, match="is larger than 0 MiB"):
        Layout.read(path)


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 200 + "]" * 200 + "}", '{"[[[": "]"' + ', "x": [{' * 60 + '"a": "[["' + "}]" * 60 + "}"]
)
def test_nesting_is_counted_outside_of_texts(text: str):
    with pytest.raises(ValueError, match="deep, more than 100"):
        parse_json(text)
    flat = json.dumps({"a": "[" * 500, 'b"\\': ["]{[" * 300] * 200})
    assert parse_json(flat) == json.loads(flat)


@contextmanager
def quick(seconds: float = 2.0) -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def test_names_that_appear_twice_are_found_in_one_pass(tmp_path: Path):
    names = ",".join(f'"{n}":0' for n in range(60_000))
    (tmp_path / "x.json").write_text(f'{{{names},"59999":0}}')
    with quick(), pytest.raises(LayoutError, match="'59999' appears twice"):
        Layout.read(tmp_path / "x.json")


def test_many_unknown_names_are_not_compared_one_by_one(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({f"segment_{n}": 0 for n in range(30_000)}))
    with quick(), pytest.raises(LayoutError, match="segments_info is missing"):
        Layout.read(tmp_path / "x.json")


@pytest.mark.parametrize("size", [(8, 8), (2**20, 4)])
def test_polygons_that_cover_the_image_again_and_again(size: tuple[int, int], tmp_path: Path):
    """Fill a megabyte with polygons of the whole image, or with edges as long as the image is high."""
    height, width = (2048, 2048) if size == (8, 8) else size
    whole = [[0, 0, width, 0, width, height]] * 3000
    zigzag = [[0, 0, width, height] * 5000]
    polygons = whole if size == (8, 8) else zigzag
    path = document(tmp_path, [{**SQUARE, "segmentation": polygons}], width=width, height=height)
    with quick(), limited(STRICT), pytest.raises(LayoutError, match="polygons cover the image too often"):
        Layout.read(path)


def test_runs_whose_sum_overflows_are_refused(tmp_path: Path):
    """Each run has 35 bits, and 2^29 of them would sum to zero; a run larger than the mask is enough to know."""
    huge = "".join(chr(48 + 32 + 31) for _ in range(6)) + chr(48 + 15)
    rle = {"size": [8, 8], "counts": huge * 3}
    with pytest.raises(LayoutError, match="cover"):
        Layout.read(document(tmp_path, [{"segmentation": rle, "text": "a"}]))


def tiff_of_many_pages(pages: int) -> bytes:
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, 1)]
    entries = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + b"\1\0\0\0" + value.to_bytes(4, "little")
        for tag, kind, value in tags
    )
    length = 2 + len(entries) + 4
    offsets = [8 + length * (n + 1) for n in range(pages - 1)] + [0]
    body = [len(tags).to_bytes(2, "little") + entries + after.to_bytes(4, "little") for after in offsets]
    return b"II*\0\x08\0\0\0" + b"".join(body)


def test_the_pages_of_a_tiff_are_not_counted(tmp_path: Path):
    (tmp_path / "x.tif").write_bytes(tiff_of_many_pages(20_000))
    (tmp_path / "x.json").write_text(json.dumps({"segments_info": [{"mask": "x.tif", "text": "a"}]}))
    with quick(), pytest.raises(LayoutError, match="several pages"):
        Layout.read(tmp_path / "x.json")


def npy(shape: tuple[int, ...], data: bytes, spaces: int = 0, descr: str = "|b1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b" " * spaces + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + data


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return path


CAPTIONS = npy((1,), "a".encode("utf-32-le"), descr="<U1")
GOOD = npy((1, 2, 2), b"\1\0\0\0")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"masks_npy": npy((1, 2, 2), b"\1\0\0\0", spaces=1 << 20), "captions_npy": CAPTIONS}, "header has 1048"),
        ({"masks_npy": GOOD, "masks": npy((1, 9, 9), b"\1" * 81), "captions_npy": CAPTIONS}, "has masks twice"),
        ({"masks": b"x", "captions_npy": CAPTIONS}, "cannot be read as npz"),
        ({"masks_npy": npy((1, 2, 2), b"\1" * (1 << 20)), "captions_npy": CAPTIONS}, "4 bytes of its shape"),
        ({"masks_npy": npy((1, 2, 2), b"\1"), "captions_npy": CAPTIONS}, "4 bytes of its shape"),
        ({"masks_npy": npy((1, 2, 2), b"\2\0\0\0"), "captions_npy": CAPTIONS}, "other than 0 and 1"),
        ({"masks_npy": npy((-1, 2, 2), b""), "captions_npy": CAPTIONS}, "cannot be read as npz"),
        ({"masks_npy": GOOD, "captions_npy": npy((1,), b"\xff\xff\xff\x7f", descr="<U1")}, "cannot be read as npz"),
        ({"masks_npy": GOOD, "captions_npy": npy((10**9,), b"", descr="<U9")}, "too large for a layout"),
        ({"masks_npy": npy((1, 2, 2), b"\0" * 32, descr="|O")}, "pickled Python objects"),
    ],
)
def test_members_of_an_npz_are_what_their_headers_say(members: dict[str, bytes], told: str, tmp_path: Path):
    path = npz(tmp_path / "x.npz", **members)
    with quick(), pytest.raises(LayoutError, match=told) as error:
        Layout.read(path)
    assert "\n" not in str(error.value) and path.stat().st_size < 1 << 16


def test_other_members_of_an_npz_are_never_read(tmp_path: Path):
    path = npz(tmp_path / "x.npz", masks_npy=GOOD, captions_npy=CAPTIONS, other_npy=npy((9,) * 9, b"", 1 << 20))
    with pytest.warns(UserWarning, match="nothing reads 'other'"):
        assert Layout.read(path).masks.tolist() == [[[True, False], [False, False]]]


def test_a_zip_that_lists_a_million_members(tmp_path: Path):
    entry = b"PK\1\2" + bytes([20, 3, 20, 0]) + bytes(38)
    count = 60_000
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff" + (len(entry) * count).to_bytes(4, "little") + bytes(6)
    (tmp_path / "x.npz").write_bytes(entry * count + end)
    with quick(1.0), pytest.raises(LayoutError, match="lists too many members"):
        Layout.read(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "ABSOLUTE", "link.png", "~/secret.png"])
@pytest.mark.parametrize("field", ["mask", "file_name"])
def test_pictures_outside_of_the_folder_are_neither_read_nor_looked_for(name: str, field: str, tmp_path: Path):
    folder = tmp_path / "layout"
    (folder / "sub").mkdir(parents=True)
    name = name.replace("ABSOLUTE", str(tmp_path / "secret.png"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    region = {"text": "a", **({"mask": name} if field == "mask" else {"id": 1})}
    (folder / "x.json").write_text(json.dumps({"segments_info": [region], field: name}))
    told = []
    for exists in (False, True):
        if exists:
            Image.new("L", (8, 8), 255).save(tmp_path / "secret.png")
        with pytest.raises(LayoutError, match="not below the folder of the JSON") as error:
            Layout.read(folder / "x.json")
        told.append(str(error.value))
    assert told[0] == told[1], "a message must not tell which files exist"
    Image.new("L", (8, 8), 255).save(folder / "sub" / "own.png")
    (folder / "x.json").write_text(json.dumps({"segments_info": [{"text": "a", "mask": "sub/own.png"}]}))
    assert Layout.read(folder / "x.json").masks.all()


def read_all(path: str) -> str:
    return str(len(Layout.read(path).masks))


def never_ends(path: str) -> str:
    while True:
        pass


def takes_memory(path: str) -> str:
    return str(len(bytearray(STRICT.memory_bytes * 5 // 4)))


@pytest.mark.slow
def test_time_and_memory_end_in_a_process_of_its_own(tmp_path: Path):
    path = str(document(tmp_path, [SQUARE]))
    assert confined(path, read_all, path) == "1"
    with pytest.raises(UserError, match="no such file") as error:
        confined(path, read_all, f"{path}.json")
    assert "\n" not in str(error.value)
    with limited(STRICT), pytest.raises(UserError, match="64 regions, more than 63"):
        confined(path, read_all, str(document(tmp_path, [SQUARE] * 64)))
    with limited(STRICT), pytest.raises(UserError, match="needed more than 1024 MiB"):
        confined(path, takes_memory, path)
    with limited(replace(STRICT, seconds=0.5)), pytest.raises(UserError, match="x.json: took|was killed"):
        confined(path, never_ends, path)


def test_the_bounds_of_pictures_are_those_of_the_limits(tmp_path: Path):
    stream = io.BytesIO()
    Image.new("1", (3000, 3000)).save(stream, "PNG")
    (tmp_path / "x.png").write_bytes(stream.getvalue())
    (tmp_path / "x.json").write_text(json.dumps({"segments_info": [{"color": [255, 255, 255], "text": "a"}]}))
    with limited(STRICT), pytest.raises(LayoutError, match="3000x3000 is more than 4 megapixels; scale it down"):
        Layout.read(tmp_path / "x.png")
    assert len(stream.getvalue()) < 4096
