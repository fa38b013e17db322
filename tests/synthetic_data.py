"""Make small copies of every data set in its real format, and keep the drawn truth.

Written with PIL, json and pyarrow directly, never with the readers under test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = ("red", "old", "small", "cat", "tower", "bridge", "sky", "wooden", "house", "under", "dark", "flower")
SACAP_SCHEMA = pa.schema(
    {
        "imagename": pa.string(),
        "image_group": pa.string(),
        "caption": pa.string(),
        "segments_info": pa.list_(pa.struct({"anno_id": pa.int64(), "caption": pa.string()})),
    }
)


@dataclass(frozen=True, eq=False)
class Truth:
    """Expected sample: image file, masks bool [N, H, W], captions, global caption."""

    key: str
    image: Path
    masks: np.ndarray
    captions: tuple[str, ...]
    caption: str | None = None


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A data set on disk: the parameters that open it, and its samples in data-set order."""

    params: dict
    truths: tuple[Truth, ...]


def make_ade20k(root: Path, n: int = 4, split: str = "training", seed: int = 0) -> Synthetic:
    """Write `root`/ADEChallengeData2016/{images,annotations}/`split`.

    A pixel is a class id 1..150; 0 is ignored.
    """
    folder = root / "ADEChallengeData2016"
    captions = read_captions("ade20k")
    names = [f"ADE_{'train' if split == 'training' else 'val'}_{i + 1:08d}" for i in range(n)]
    return _make_label_maps(folder / "images" / split, folder / "annotations" / split, names, captions, 0, seed)


def make_coco_stuff(root: Path, n: int = 4, split: str = "train2017", seed: int = 0) -> Synthetic:
    """Write `root`/coco_stuff/`split` and `root`/coco_stuff/stuffthingmaps/`split`.

    A pixel is a COCO id - 1; 255 is unlabelled.
    """
    folder = root / "coco_stuff"
    captions = {value - 1: caption for value, caption in read_captions("coco_stuff").items()}
    names = [f"{9 + 16 * i:012d}" for i in range(n)]
    return _make_label_maps(folder / split, folder / "stuffthingmaps" / split, names, captions, 255, seed)


def make_sacap_1m(root: Path, n: int = 4, groups: int = 2, seed: int = 0, n_masks: int = 8) -> Synthetic:
    """Write `root`/SACap-1M/{annotations,raw,cache}.

    Beside each jpg lies a json with `n_masks` masks, of which 1 to 6 have a caption. With `groups` 0 the table has no
    column image_group and the images lie in no group folders, as in the test split.
    """
    folder = root / "SACap-1M"
    raw, table = folder / "raw", folder / "annotations" / "anno_train.parquet"
    rng = np.random.default_rng(seed)
    rows, truths = [], []
    for i in range(n):
        name, group = f"sa_{223750 + 7 * i}", f"sa_{i % groups:06d}" if groups else ""
        masks = draw_regions(rng, _size(rng), n_masks)
        ids = [int(anno_id) for anno_id in rng.permutation(10 * n_masks)[:n_masks] + 500000000]
        write_image(raw / group / f"{name}.jpg", rng, masks.shape[1:])
        write_sa1b_json(raw / group / f"{name}.json", name, masks, ids)
        chosen = rng.permutation(n_masks)[: rng.integers(1, min(6, n_masks) + 1)]
        captions = {int(m): sentence(rng, 8) for m in chosen}  # in the parquet's order, which differs from the json's
        segments = [{"anno_id": ids[m], "caption": caption} for m, caption in captions.items()]
        rows.append({"imagename": f"{name}.jpg", "image_group": group, "caption": sentence(rng, 30)})
        rows[-1]["segments_info"] = segments
        in_json_order = sorted(captions)
        truths.append(
            Truth(
                name,
                raw / group / f"{name}.jpg",
                masks[in_json_order],
                tuple(captions[m] for m in in_json_order),
                rows[-1]["caption"],
            )
        )
    write_sacap_parquet(table, rows, with_group=bool(groups))
    params = {"seg_caption_path": str(table), "image_root": str(raw), "cache_root": str(folder / "cache")}
    return Synthetic(params, tuple(truths))


def make_folder(root: Path, n: int = 4, seed: int = 0) -> Synthetic:
    """Write `root`/folder/{images,layouts}.

    The layouts are in turn a colour map, a mask folder, run lengths, and an npz.
    """
    images, layouts = root / "folder" / "images", root / "folder" / "layouts"
    rng = np.random.default_rng(seed)
    truths = []
    for i in range(n):
        name, kind = f"picture_{i}", ("color", "mask", "segmentation", "npz")[i % 4]
        labels = draw_labels(rng, _size(rng), range(1, 4))
        masks = np.stack([labels == value for value in (1, 2, 3) if (labels == value).any()])
        captions = tuple(sentence(rng, 5) for _ in masks)
        write_image(images / f"{name}.jpg", rng, labels.shape)
        _write_layout(layouts, name, kind, masks, captions, caption := sentence(rng, 9))
        truths.append(Truth(name, images / f"{name}.jpg", masks, captions, caption))
    # A folder of mask pictures is listed after the files.
    order = sorted(range(n), key=lambda i: (i % 4 == 1, truths[i].key))
    return Synthetic({"image_root": str(images), "layout_root": str(layouts)}, tuple(truths[i] for i in order))


def read_captions(name: str) -> dict[int, str]:
    """Read id -> caption from the table that the package ships."""
    lines = (Path(__file__).parents[1] / "seg2any" / "data" / "captions" / f"{name}.txt").read_text().splitlines()
    return {int(line.split("\t")[0]): line.split("\t")[1] for line in lines}


def write_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((size[1], size[0]), Image.Resampling.BILINEAR).save(path)


def write_label_map(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def write_sa1b_json(path: Path, name: str, masks: np.ndarray, ids: Sequence[int]) -> None:
    """Write a json with the fields of SA-1B; `masks` is bool [N, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = masks.shape[1:]
    image = {"image_id": int(name.rsplit("_", 1)[-1]), "width": width, "height": height, "file_name": f"{name}.jpg"}
    annotations = [
        {
            "bbox": [0.0, 0.0, float(width), float(height)],
            "area": int(mask.sum()),
            "segmentation": {"size": [height, width], "counts": encode_rle(mask)},
            "predicted_iou": 0.95,
            "point_coords": [[1.0, 1.0]],
            "crop_box": [0.0, 0.0, float(width), float(height)],
            "id": anno_id,
            "stability_score": 0.97,
        }
        for mask, anno_id in zip(masks, ids, strict=True)
    ]
    path.write_text(json.dumps({"image": image, "annotations": annotations}))


def write_sacap_parquet(path: Path, rows: list[dict], with_group: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, SACAP_SCHEMA)
    pq.write_table(table if with_group else table.drop_columns(["image_group"]), path)


def encode_rle(mask: np.ndarray) -> str:
    """Encode bool [H, W] as compressed COCO run lengths.

    Written from the format's description, character by character.
    """
    flat = mask.T.ravel()
    runs, value, length = [], False, 0
    for pixel in flat.tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    characters = []
    for i, run in enumerate(runs):
        number, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + 32 * more))
    return "".join(characters)


def draw_labels(rng: np.random.Generator, size: tuple[int, int], values: Sequence[int]) -> np.ndarray:
    """Draw uint8 [H, W]: every pixel gets the random value of the nearest of some points."""
    height, width = size
    points = rng.random((2 * len(values), 2)) * size
    rows, columns = np.mgrid[:height, :width]
    nearest = ((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2).argmin(-1)
    return np.asarray([*values, *rng.choice(values, len(values))], np.uint8)[nearest]


def draw_regions(rng: np.random.Generator, size: tuple[int, int], n: int) -> np.ndarray:
    """Draw bool [n, H, W]: ellipses that overlap, touch the border and are sometimes tiny."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    centres, radii = rng.random((n, 2)) * size, 1 + rng.random((n, 2)) * np.asarray(size) / 2.5
    distance = ((rows[..., None] - centres[:, 0]) / radii[:, 0]) ** 2
    distance = distance + ((columns[..., None] - centres[:, 1]) / radii[:, 1]) ** 2
    return np.moveaxis(distance < 1, -1, 0)


def sentence(rng: np.random.Generator, words: int) -> str:
    return "a " + " ".join(rng.choice(WORDS, rng.integers(1, words + 1)))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(64, 121, 2)
    return int(height), int(width)


def _make_label_maps(images: Path, maps: Path, names: list[str], captions: dict[int, str], none: int, seed: int):
    rng = np.random.default_rng(seed)
    truths = []
    for name in names:
        classes = sorted(int(value) for value in rng.choice(list(captions), rng.integers(1, 6), replace=False))
        labels = draw_labels(rng, _size(rng), [none, *classes])
        values = [value for value in classes if (labels == value).any()]
        write_image(images / f"{name}.jpg", rng, labels.shape)
        write_label_map(maps / f"{name}.png", labels)
        masks = np.stack([labels == value for value in values])
        truths.append(Truth(name, images / f"{name}.jpg", masks, tuple(captions[value] for value in values)))
    return Synthetic({"image_root": str(images), "segm_root": str(maps)}, tuple(truths))


def _write_layout(folder: Path, name: str, kind: str, masks: np.ndarray, captions: Sequence[str], caption: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez(folder / f"{name}.npz", masks=masks, captions=np.array(captions), caption=np.array(caption))
        return
    home = folder / name if kind == "mask" else folder
    home.mkdir(exist_ok=True)
    regions: list[dict] = [{"text": text} for text in captions]
    colors = np.zeros((*masks.shape[1:], 3), np.uint8)
    for i, (region, mask) in enumerate(zip(regions, masks, strict=True)):
        if kind == "color":
            region["color"] = [40 * (i + 1), 200 - 50 * i, 90]
            colors[mask] = region["color"]
        elif kind == "mask":
            region["mask"] = f"region_{i}.png"
            Image.fromarray(mask).save(home / region["mask"])
        else:
            region["segmentation"] = {"size": list(mask.shape), "counts": encode_rle(mask)}
    if kind == "color":
        Image.fromarray(colors).save(home / f"{name}.png")
    (home / f"{name}.json").write_text(json.dumps({"caption": caption, "segments_info": regions}))
