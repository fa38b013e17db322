"""Check that damaged files give a Layout or a LayoutError of one line, within seconds.

Whole files are damaged at random (seeded): bytes of pictures and npz files, values of JSON documents. SEG2ANY_FUZZ
multiplies the number of trials.
"""

from __future__ import annotations

import copy
import io
import json
import os
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError

SCALE = float(os.environ.get("SEG2ANY_FUZZ", "1"))
SLOW = 20.0  # CPU seconds for one file, on any machine: damage may turn a tiny picture into one of 64 megapixels
WORDS = [
    None,
    True,
    -1,
    0,
    1,
    63,
    2**31,
    2**63,
    10**400,
    0.5,
    1e999,
    -0.0,
    "",
    " ",
    "x",
    "\ud800",
    "\0",
    "../x",
    "a\nb",
    "\u00e9" * 200,
]
WORDS += [[], [[]], {}, {"a": {}}, [255, 0, 0], [0.0, 0, 0], ["255", 0, 0], [-1, 0, 0], [1] * 1000, "0" * 300, "o" * 40]
KEYS = ["segments_info", "annotations", "color", "mask", "segmentation", "text", "caption", "seed", "size", "counts"]


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


def check(path: Path, outcomes: Counter) -> None:
    """Read `path`; fail on anything but a Layout or a LayoutError of one line, and on slowness."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = Layout.read(path, snap_colors=bool(sum(outcomes.values()) % 2))
    except LayoutError as error:
        assert "\n" not in str(error) and len(str(error)) > 10
        outcomes["refused"] += 1
    else:
        assert layout.masks.any(axis=(1, 2)).all() and len(layout.captions) == len(layout.masks) > 0
        outcomes["read"] += 1
    assert time.process_time() - start < SLOW


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage data one to four times: change a byte, cut out, double or overwrite a piece, cut the end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        action = rng.integers(6)
        if action <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = data[at : at + length]
        elif action == 4:
            data[at : at + length] = rng.bytes(length)
        else:
            del data[at:]
    return bytes(data)


def repair_png(data: bytes) -> bytes:
    """Correct the checksums of damaged chunks, so that the damage reaches the decoder behind them."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return out + data[at:]


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


@pytest.mark.parametrize("name", PICTURES)
def test_damaged_pictures(tmp_path: Path, name: str):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    whole = PICTURES[name]()
    suffix = Path(name).suffix
    (tmp_path / "map.json").write_text(json.dumps({"segments_info": document()["segments_info"][:1]}))
    (tmp_path / "one.json").write_text(json.dumps({"segments_info": [{"mask": f"mask{suffix}", "text": "a"}]}))
    outcomes = Counter()
    for trial in range(int(300 * SCALE)):
        data = damage(whole, rng)
        data = repair_png(data) if suffix == ".png" and trial % 2 else data
        (tmp_path / f"map{suffix}").write_bytes(data)
        (tmp_path / f"mask{suffix}").write_bytes(data)
        check(tmp_path / f"map{suffix}", outcomes)
        check(tmp_path / "one.json", outcomes)
    assert outcomes["refused"]


def test_damaged_json_bytes(tmp_path: Path):
    rng = np.random.default_rng(1)
    write_pictures(tmp_path)
    whole = json.dumps(document()).encode()
    outcomes = Counter()
    for _ in range(int(1500 * SCALE)):
        (tmp_path / "map.json").write_bytes(damage(whole, rng))
        check(tmp_path / "map.json", outcomes)
    assert outcomes["refused"] and outcomes["read"]


def test_wrong_json_values(tmp_path: Path):
    rng = np.random.default_rng(2)
    write_pictures(tmp_path)
    outcomes = Counter()
    for _ in range(int(3000 * SCALE)):
        mutant = copy.deepcopy(document())
        for _ in range(rng.integers(1, 4)):
            mutate(mutant, rng)
        (tmp_path / "map.json").write_text(json.dumps(mutant))
        check(tmp_path / "map.json", outcomes)
    assert outcomes["refused"] and outcomes["read"]


def test_damaged_npz(tmp_path: Path):
    rng = np.random.default_rng(3)
    outcomes = Counter()
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, masks=pixels().transpose(2, 0, 1)[::2] > 0, captions=["a", "b"], caption="c", seed=3)
        for _ in range(int(500 * SCALE)):
            (tmp_path / "x.npz").write_bytes(damage(stream.getvalue(), rng))
            check(tmp_path / "x.npz", outcomes)
    assert outcomes["refused"] and outcomes["read"]


def test_an_npz_that_claims_to_be_huge_is_refused_by_its_header(tmp_path: Path):
    description = b"{'descr': '|b1', 'fortran_order': False, 'shape': (1, 99999, 99999), }".ljust(117) + b"\n"
    header = b"\x93NUMPY\x01\x00" + len(description).to_bytes(2, "little") + description
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("masks.npy", header)
        archive.writestr("captions.npy", header)
    with pytest.raises(LayoutError, match="99999x99999 is more than 64 megapixels"):
        Layout.read(tmp_path / "x.npz")


def write_pictures(folder: Path) -> None:
    (folder / "map.png").write_bytes(PICTURES["rgb.png"]())
    (folder / "mask.png").write_bytes(PICTURES["bit.png"]())


def mutate(value: object, rng: np.random.Generator) -> None:
    """Change one thing somewhere in a JSON document: replace, remove, add or rename."""
    places = list(containers(value))
    place = places[rng.integers(len(places))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    word = copy.deepcopy(WORDS[rng.integers(len(WORDS))])
    action = rng.integers(4)
    if not keys or action == 0:
        if isinstance(place, dict):
            place[KEYS[rng.integers(len(KEYS))]] = word
        else:
            place.append(word)
    elif action == 1:
        del place[keys[rng.integers(len(keys))]]
    else:
        place[keys[rng.integers(len(keys))]] = word


def containers(value: object):
    if isinstance(value, (dict, list)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)
