"""Compare samples read by our data sets with golden ones.

Order, captions, masks and token counts have to be equal, and pixels to one grey level: versions of Pillow round
differently when they decode and resample.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from seg2any.data.aspect import fit
from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import Sample
from seg2any.data.regions import condition_length, text_lengths
from tests.parity.contour import T5_TOKENIZER, WITHOUT_TOKENIZER, read_stack, t5_tokenizer
from tests.parity.recorded_data import data_sets, items, label_maps, positions, training_data
from tests.synthetic_data import write_sa1b_json, write_sacap_parquet

ONE_LEVEL = 2 / 255 + 1e-6  # of a pixel in [-1, 1]


def cases(root: Path) -> dict[str, Callable[[], None]]:
    """List one check per data-set item, per run-length case, and per recorded training batch."""
    found: dict[str, Callable[[], None]] = {}
    for folder in data_sets(root):
        for item in items(folder):
            found[f"{folder.name}/{item['idx']}/s{item['s']}"] = partial(check_item, folder, item)
    for folder in sorted(path.parent for path in root.glob("contour/*/labels_orig.png")):
        found[f"{folder.name}"] = partial(check_run_lengths, folder)
    for folder in sorted(path.parent for path in root.glob("train/*/batch.safetensors")):
        found[f"train/{folder.name}"] = partial(check_batch, root, folder)
    return found | (_text_cases(root) if T5_TOKENIZER else {})


def pending(root: Path) -> dict[str, str]:
    return {} if T5_TOKENIZER else dict.fromkeys(_text_cases(root), WITHOUT_TOKENIZER)


def _text_cases(root: Path) -> dict[str, Callable[[], None]]:
    return {
        f"{folder.name}/{item['idx']}/s{item['s']}/text": partial(check_text_of_item, folder, item)
        for folder in data_sets(root)
        for item in items(folder)
        if item.get("token_num")
    }


def check_item(folder: Path, item: dict) -> None:
    data, tensors, key = label_maps(folder), load_file(folder / "items.safetensors"), Path(item["image_name"]).stem
    n = positions(data)[key]
    # The published order counts images without any label, too.
    assert n + sum(one.key < key for one in data.left_out) == item["idx"]
    label = tensors[f"{item['idx']}/label"] != 0
    assert_equals(fit(data[n], label.shape[1:], "stretch"), label, tensors[f"{item['idx']}/pixel_values"])
    annotation = data.annotation(n)
    assert (list(annotation.captions), annotation.caption) == (item["regional_captions"], item["global_caption"])
    if item.get("token_num"):
        cond_size = tensors[f"{item['idx']}/s{item['s']}/cond_pixel_values_1ch"].shape[1:]
        expected = item["token_num"]["cond_seq_len"]
        assert condition_length(annotation.regions, label.shape[1:], cond_size) == expected


def check_text_of_item(folder: Path, item: dict) -> None:
    assert sum(text_lengths([item["regional_captions"]], t5_tokenizer())[0]) == item["token_num"]["txt_seq_len"]


def check_run_lengths(folder: Path) -> None:
    """Write the recorded masks as SA-1B does and read them back as SACap-1M.

    They pass through parquet and json and have to give the recorded resized masks.
    """
    case = json.loads((folder.parent / "index.json").read_text())["cases"][folder.name]
    masks = read_stack(folder / "labels_orig.png", case["n"])
    recorded = load_file(folder / "image.safetensors") if (folder / "image.safetensors").exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        root, ids = Path(scratch), range(7, 7 + case["n"])
        image = recorded.get("image_u8", np.zeros((*masks.shape[1:], 3), np.uint8))
        write_sa1b_json(root / "g" / "sa_1.json", "sa_1", masks, ids)
        Image.fromarray(image).save(root / "g" / "sa_1.png")
        row = {"imagename": "sa_1.png", "image_group": "g", "caption": "a scene"}
        row["segments_info"] = [{"anno_id": i, "caption": f"region {i}"} for i in reversed(ids)]
        write_sacap_parquet(root / "anno.parquet", [row])
        data = open_data_set(
            "sacap_1m", {"seg_caption_path": str(root / "anno.parquet"), "image_root": scratch}, "fail"
        )
        sample, annotation = data[0], data.annotation(0)
    assert sample.layout.captions == tuple(f"region {i}" for i in ids)
    size = (case["h"], case["w"])
    label = read_stack(folder / "labels.png", case["n"])
    assert_equals(fit(sample, size, "stretch"), label, recorded.get("pixel_values"))
    for condition in case["cond"].values():
        if condition["valid_tokens"] is not None:
            cond_size = (condition["h"], condition["w"])
            assert condition_length(annotation.regions, size, cond_size) == condition["valid_tokens"]


def check_batch(root: Path, folder: Path) -> None:
    """Compare with the batch of a training run of the published code, in the recorded order."""
    index, batch = json.loads((folder / "index.json").read_text()), load_file(folder / "batch.safetensors")
    data, _ = training_data(root, index)
    for n, name in enumerate(index["image_names"]):
        sample = fit(data[positions(data)[Path(name).stem]], batch["pixel_values"].shape[-2:], "stretch")
        assert_equals(sample, batch[f"label{n}"] != 0, batch["pixel_values"][n])
        assert list(sample.layout.captions) == index["regional_captions"][n]
        assert sample.layout.caption == (index["global_caption"] or {n: None})[n]


def assert_equals(sample: Sample, masks: np.ndarray, pixels: np.ndarray | None) -> None:
    """Compare bool [N, H, W] masks and float32 [3, H, W] pixels in [-1, 1] within one of 255 levels."""
    np.testing.assert_array_equal(sample.layout.masks, masks)
    if pixels is not None:
        unit = sample.image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        np.testing.assert_allclose((unit - np.float32(0.5)) / np.float32(0.5), pixels, rtol=0, atol=ONE_LEVEL)
