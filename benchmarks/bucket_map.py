"""Compare how fast our code and a plain implementation count tokens, on one core.

    python -m benchmarks.bucket_map
    python -m benchmarks.bucket_map --images 200 --output runs/bucket_map.jsonl

The samples are generated. SA-1B-like jsons of 1500 x 2250 px have 100 masks, 6 of them captioned, for images of 1024 px
and condition images of 512 px. Label maps of 480 x 640 px, resized to 512 px, have 10 classes, the average of ADE20K,
and 20, because the plain implementation pays for every mask. Both take turns on the same samples; timed is all from the
file to the row of the map, in processor time. Our first start, without a cache of earlier findings, also opens the data
set, which the plain implementation does by listing files: `times as fast, with opening` adds that to our time. The
counts must be equal. Every kind of sample prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks import plain_counts
from benchmarks.result_lines import check_place, leave
from seg2any.attention.settings import published
from seg2any.data.count import RowCounter
from seg2any.data.dataset import DataSet
from seg2any.data.label_maps import ADE20KDataset
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.generate.model import read_small_files
from seg2any.system.console import exit_status, whole
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances
from seg2any.training.config import Config, Model
from seg2any.training.token_counts import origin_of

SIZE = (1500, 2250)
MASKS, CAPTIONED = 100, 6
LABELS_SIZE, CLASSES = (480, 640), (10, 20)
ROUND = 128  # samples that each implementation counts before it is the other's turn
WORDS = (
    "a",
    "the",
    "old",
    "red",
    "small",
    "wooden",
    "bright",
    "tree",
    "house",
    "window",
    "person",
    "under",
    "near",
    "of",
)


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=whole(2), default=ROUND, help="samples of each kind (default: %(default)s)")
    parser.add_argument("--model", default="examples/shapes/model", help="FLUX pipeline whose T5 tokenizer is used")
    parser.add_argument("--output", type=user_path, help="append the JSON lines to this file")
    options = parser.parse_args(words)
    return exit_status("benchmarks.bucket_map", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure every kind of sample and print a JSON line for each. Raises UserError."""
    check_place(options.output)
    kinds = [(sacap, MASKS), *((label_maps, classes) for classes in CLASSES)]
    for measure, number in kinds:
        # A new process for each kind: memory that an earlier one left allocated would make the next one faster.
        with multiprocessing.get_context("spawn").Pool(1, one_thread) as pool:
            report = pool.apply(measure, (number, options.images, options.model)) | where()
        leave([json.dumps(report)], options.output)


def one_thread() -> None:
    """Limit every library of this process to one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def where() -> dict:
    """Collect the circumstances, with the versions of the libraries that decode and tokenise."""
    found = circumstances("cpu")
    packages = {"opencv": cv2.__version__, "pyarrow": pa.__version__, "tokenizers": metadata.version("tokenizers")}
    found["versions"] |= packages | {"decoder of the plain way": plain_counts.DECODER}
    return found


def sacap(masks: int, images: int, model: str) -> dict:
    """Measure the rates on `images` generated jsons with `masks` masks each."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        rows = write_sa1b(folder / "raw", rng, images, masks)
        pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")
        data, opening = opened(lambda: SACap1MDataset(folder / "captions.parquet", folder / "raw", None))
        captions = [{segment["anno_id"]: segment["caption"] for segment in row["segments_info"]} for row in rows]
        paths = [folder / "raw" / row["imagename"].replace("jpg", "json") for row in rows]

        def plain(index: int, tokenizer) -> list[int]:
            caption = rows[index]["caption"]
            return plain_counts.count_json(paths[index], captions[index], caption, 1024, 512, tokenizer)

        found = compare(
            data, Config(resolution=1024, model=Model(condition=published("sacap_1m"))), model, plain, opening
        )
    return {"what": f"SA-1B json, {masks} masks, {CAPTIONED} captioned, 1024 px, condition 512 px"} | found


def label_maps(classes: int, images: int, model: str) -> dict:
    """Measure the rates on `images` generated label maps with `classes` classes each."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for index in range(images):
            write_label_map(folder, f"{index:05d}", classes, rng)
        data, opening = opened(lambda: ADE20KDataset(folder / "images", folder / "annotations"))
        paths = sorted((folder / "annotations").iterdir())

        def plain(index: int, tokenizer) -> list[int]:
            return plain_counts.count_labels(paths[index], data.legend.captions, 0, 512, tokenizer)

        found = compare(data, Config(), model, plain, opening)
    return {"what": f"label map, {classes} classes, 512 px"} | found


def opened(make: Callable[[], DataSet]) -> tuple[DataSet, float]:
    """Open a data set; return it and the processor seconds that opening it again takes."""
    make()  # not timed: the first call loads libraries
    return timed(lambda _: make(), (), 0.0)


def compare(
    data: DataSet, config: Config, model: str, plain: Callable[[int, object], list[int]], opening: float
) -> dict:
    """Count all samples with both implementations in turn.

    opening  processor seconds that opening `data` takes

    Raises AssertionError if any count differs.
    """
    patch, tokenizer = read_small_files(model)
    counter = RowCounter(data, tokenizer, origin_of(data, tokenizer, patch, config))
    counter(range(2)), plain(0, tokenizer)  # not timed: the first call loads libraries
    spent = {"ours": 0.0, "plain": 0.0}
    for start in range(0, len(data), ROUND):
        indices = range(start, min(start + ROUND, len(data)))
        ours, spent["ours"] = timed(lambda part: counter(part), indices, spent["ours"])
        theirs, spent["plain"] = timed(lambda part: [plain(i, tokenizer) for i in part], indices, spent["plain"])
        counted = [[row["cond_seq_len"], row["txt_seq_len"]] for row in ours.to_pylist()]
        assert counted == theirs, f"counts differ in samples {start} to {indices.stop - 1}"
    rates = {name: len(data) / seconds for name, seconds in spent.items()}
    return {
        "images": len(data),
        "ours images/s/core": round(rates["ours"], 1),
        "plain images/s/core": round(rates["plain"], 2),
        "times as fast": round(spent["plain"] / spent["ours"], 1),
        "opening, ms each": round(1e3 * opening / len(data), 3),
        "times as fast, with opening": round(spent["plain"] / (spent["ours"] + opening), 1),
        "counts equal": True,
    }


def timed(work: Callable[[Sequence[int]], object], indices: Sequence[int], before: float) -> tuple[object, float]:
    """Run `work(indices)`; return its result, and `before` plus the processor seconds it took."""
    start = time.process_time()
    result = work(indices)
    return result, before + time.process_time() - start


def write_sa1b(folder: Path, rng: np.random.Generator, images: int, masks: int) -> list[dict]:
    """Write SA-1B-like jsons and empty jpgs; return the rows of their caption table.

    Images share a pool of masks, which is faster to generate.
    """
    folder.mkdir()
    shares = np.exp(rng.uniform(np.log(2e-4), np.log(0.2), 3 * masks))  # of the image's area
    pool = [encode(draw_blob(rng, SIZE, share)) for share in shares]
    large = np.flatnonzero(shares > 0.01)
    rows = []
    for index in range(images):
        captioned = rng.choice(large, CAPTIONED, replace=False)
        others = rng.choice(np.setdiff1d(np.arange(len(pool)), captioned), masks - CAPTIONED, replace=False)
        chosen = rng.permutation(np.concatenate([captioned, others]))
        ids = {int(mask): 500000000 + number for number, mask in enumerate(chosen)}
        name = f"sa_{index}"
        annotations = [
            {
                "bbox": [100.0, 200.0, 300.0, 400.0],
                "area": int(shares[mask] * SIZE[0] * SIZE[1]),
                "segmentation": {"size": list(SIZE), "counts": pool[mask]},
                "predicted_iou": 0.9512345790863037,
                "point_coords": [[123.28125, 456.390625]],
                "crop_box": [0.0, 0.0, float(SIZE[1]), float(SIZE[0])],
                "id": anno_id,
                "stability_score": 0.9712345600128174,
            }
            for mask, anno_id in ids.items()
        ]
        image = {"image_id": index, "width": SIZE[1], "height": SIZE[0], "file_name": f"{name}.jpg"}
        (folder / f"{name}.json").write_text(json.dumps({"image": image, "annotations": annotations}))
        (folder / f"{name}.jpg").touch()
        segments = [{"anno_id": ids[int(mask)], "caption": sentence(rng, 14)} for mask in captioned]
        rows.append({"imagename": f"{name}.jpg", "caption": sentence(rng, 58), "segments_info": segments})
    return rows


def write_label_map(folder: Path, name: str, number: int, rng: np.random.Generator) -> None:
    """Write a label map with wavy cells of `number` classes, and a photo of noise of its size."""
    height, width = LABELS_SIZE
    points = np.ones(LABELS_SIZE, np.uint8)
    points[rng.integers(0, height, 3 * number), rng.integers(0, width, 3 * number)] = 0
    cells = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    classes = np.concatenate([[0], rng.choice(np.arange(1, 151), number, replace=False)]).astype(np.uint8)
    shifts = (cv2.resize(rng.normal(0, 6, (48, 64)), LABELS_SIZE[::-1]) for _ in range(2))
    rows, columns = (np.mgrid[:height, :width] + np.stack(list(shifts))).astype(np.float32)
    labels = np.resize(classes, cells.max() + 1)[cells]
    labels = cv2.remap(labels, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (*LABELS_SIZE, 3), dtype=np.uint8), (0, 0), 2)
    for kind, image, suffix in (("images", noise, "jpg"), ("annotations", labels, "png")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / kind / f"{name}.{suffix}")


def draw_blob(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    """Draw a wavy disc that covers about `share` of the image, bool [H, W]."""
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    waves = sum(rng.normal(0, 0.25 / n) * np.cos(n * angles + rng.uniform(0, 2 * np.pi)) for n in range(1, 12))
    radius = np.sqrt(share * size[0] * size[1] / np.pi) * np.clip(1 + waves, 0.2, None)
    centre = rng.random(2) * (size[1], size[0])
    outline = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [outline.astype(np.int32)], 1) > 0


def encode(mask: np.ndarray) -> str:
    """Encode a mask as compressed run lengths; see `seg2any.layout.rle`."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    characters = []
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + 32 * (not last)))
            if last:
                break
    return "".join(characters)


def sentence(rng: np.random.Generator, words: int) -> str:
    """Join random words; only their number matters."""
    return " ".join(rng.choice(WORDS, words))


if __name__ == "__main__":
    run_command(main)
