"""Small files that would cost much: each is read or refused within two seconds under the strict limits."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.annotate.caption_file import open_captions
from seg2any.data.dataset import SampleError
from seg2any.data.layout_sets.coco_mig import COCOMIGDataset
from seg2any.data.layout_sets.overlaybench import OverLayBenchDataset
from seg2any.data.layout_sets.sa_z import SAZDataset
from seg2any.layout import Layout
from seg2any.layout.convert import read_any
from seg2any.layout.rle import encode_rle
from seg2any.system.errors import UserError
from seg2any.system.headers import read_headers
from seg2any.system.limits import STRICT, limited
from seg2any.training import config

SECONDS = 2.0  # of the processor, to read one file
SIDE = 1448  # 63 masks of this side are nearly mask_bytes


def pictures(folder: Path, count: int, pixels: np.ndarray) -> Callable[[], object]:
    Image.fromarray(pixels).save(folder / "m.png")
    regions = [{"mask": "m.png", "text": "a"} for _ in range(count)]
    (folder / "x.json").write_text(json.dumps({"segments_info": regions}))
    return lambda: Layout.read(folder / "x.json")


def masks_of_pictures(folder: Path) -> Callable[[], object]:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[::2, :, 3] = 255
    return pictures(folder, 63, pixels)


def most_pictures_of_alpha(folder: Path) -> Callable[[], object]:
    pixels = np.zeros((315, 315, 4), np.uint8)
    pixels[::2, :, 3] = 255
    return pictures(folder, 63, pixels)


def most_pictures_of_colours(folder: Path) -> Callable[[], object]:
    """Draw faded reds, whose shade is compared pixel by pixel."""
    pixels = np.zeros((315, 315, 4), np.uint8)
    pixels[..., 0] = np.arange(315) // 2
    pixels[::2, :, 3] = 255
    pixels[1::2, :, 3] = 200
    return pictures(folder, 63, pixels)


def masks_of_runs(folder: Path) -> Callable[[], object]:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, ::12] = True
    mask[::483] = True
    regions = [{"segmentation": encode_rle(mask), "text": "a"} for _ in range(60)]
    (folder / "x.json").write_text(json.dumps({"segments_info": regions}))
    return lambda: Layout.read(folder / "x.json")


def soft_edges(folder: Path) -> Callable[[], object]:
    count, side = 30, 1024
    colors = np.stack([np.arange(count) % 3 * 120, np.arange(count) // 3 % 3 * 120, np.arange(count) // 9 * 80], -1)
    bars = colors[np.arange(side) * count // side]
    soft = (bars + np.roll(bars, side // count, 0)) // 2
    bars[::2] = soft[::2]
    Image.fromarray(np.tile(bars.astype(np.uint8)[:, None], (1, side, 1))).save(folder / "x.png")
    regions = [{"color": color.tolist(), "text": "a"} for color in colors]
    (folder / "x.json").write_text(json.dumps({"segments_info": regions}))
    return lambda: Layout.read(folder / "x.json", snap_colors=True)


def npz_of_masks(folder: Path) -> Callable[[], object]:
    masks = np.ones((63, SIDE - 8, SIDE - 8), bool)
    np.savez_compressed(folder / "x.npz", masks=masks, captions=["a"] * 63)
    return lambda: Layout.read(folder / "x.npz")


def prompt_of_brackets(folder: Path) -> Callable[[], object]:
    (folder / "x.txt").write_text('[{"a": ' * 64 + '[{"a": "' + "[" * 2_000_000 + '"}, 1]')
    return lambda: list(read_any(folder / "x.txt", {}))


def prompt_of_spaces(folder: Path) -> Callable[[], object]:
    row = json.dumps([{"id": "a_1", "bbox": [0, 0, 9, 9], "desc": "a"}])
    (folder / "x.txt").write_text("a" + " " * 2_000_000 + "b " + row)
    return lambda: list(read_any(folder / "x.txt", {}))


def anchors(folder: Path) -> Callable[[], object]:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else ['x'] * 9)}]" for n in range(30)]
    (folder / "x.yaml").write_text("\n".join(levels))
    return lambda: COCOMIGDataset(folder / "x.yaml", on_error="skip")


def config_of_anchors(folder: Path) -> Callable[[], object]:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else ['x'] * 9)}]" for n in range(30)]
    (folder / "x.yaml").write_text("\n".join(levels))
    return lambda: config.load([str(folder / "x.yaml")])


def config_of_merges(folder: Path) -> Callable[[], object]:
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    (folder / "x.yaml").write_text("\n".join(levels))
    return lambda: config.load([str(folder / "x.yaml")])


def config_of_values(folder: Path) -> Callable[[], object]:
    (folder / "x.yaml").write_text("a: [" + "1," * 16_000 + "1]")
    return lambda: config.load([str(folder / "x.yaml")])


def boxes_in_yaml(folder: Path) -> Callable[[], object]:
    (folder / "x.yaml").write_text("p:\n  a: [&b [0, 0, 1, 1], " + "*b, " * 12_000 + "*b]")
    return lambda: COCOMIGDataset(folder / "x.yaml", 2048, on_error="skip")


def boxes_of_sa_z(folder: Path) -> Callable[[], object]:
    Image.new("RGB", (2048, 2048)).save(folder / "a.jpg")
    found = [{"bbox": [0, 0, 9, 9], "caption": "a"}] * 40_000
    (folder / "x.json").write_text(json.dumps({"a": {"image_path": "a.jpg", "mask_annotation": found}}))
    return lambda: SAZDataset(folder / "x.json", folder).annotation(0)


def table_of_one_text(folder: Path) -> Callable[[], object]:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["x" * 1_000_000]))
    table = pa.table({"image_id": [str(n) for n in range(20_000)], "annotation": text, "image": [b""] * 20_000})
    pq.write_table(table, folder / "simple-0.parquet", compression="zstd")
    return lambda: OverLayBenchDataset(folder)


def header_of_many_tensors(folder: Path) -> Callable[[], object]:
    about = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps({str(n): about for n in range(55_000)}).encode()
    (folder / "x.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    return lambda: read_headers([folder / "x.safetensors"])


def many_lines(folder: Path) -> Callable[[], object]:
    (folder / "x.jsonl").write_text("".join(f'{{"image":"{n}","regions":{{}}}}\n' for n in range(60_000)))
    return lambda: open_captions(folder / "x.jsonl")


def more_lines(folder: Path) -> Callable[[], object]:
    (folder / "x.jsonl").write_text("{}\n" * 700_000)
    return lambda: open_captions(folder / "x.jsonl")


FILES: list[Callable[[Path], Callable[[], object]]] = [
    *(
        masks_of_pictures,
        most_pictures_of_alpha,
        most_pictures_of_colours,
        masks_of_runs,
        soft_edges,
        npz_of_masks,
        prompt_of_brackets,
        prompt_of_spaces,
        anchors,
    ),
    *(config_of_anchors, config_of_merges, config_of_values, boxes_in_yaml, boxes_of_sa_z, table_of_one_text),
    *(header_of_many_tensors, many_lines, more_lines),
]


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_small_file_is_read_or_refused_within_two_seconds(
    make: Callable[[Path], Callable[[], object]], tmp_path: Path
):
    read = make(tmp_path)
    start = time.process_time()
    with limited(STRICT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except (UserError, SampleError) as error:
            assert "\n" not in str(error)
            print(error)
    seconds = time.process_time() - start
    print(f"{make.__name__}: {seconds:.2f} s")
    assert seconds < SECONDS
