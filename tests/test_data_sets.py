"""Every data set on a small copy in its real format: samples, omissions and messages."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile
from torch.utils.data import DataLoader

from seg2any.data import label_maps
from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import SampleError
from seg2any.data.picture_index import check_pictures
from seg2any.data.pictures import check_photo
from tests import synthetic_data
from tests.opened_data import keys, refused, skipping
from tests.synthetic_data import Synthetic

MAKERS: dict[str, Callable[[Path], Synthetic]] = {
    "ade20k": synthetic_data.make_ade20k,
    "coco_stuff": synthetic_data.make_coco_stuff,
    "sacap_1m": synthetic_data.make_sacap_1m,
    "folder": synthetic_data.make_folder,
}

PUBLISHED = {"resolution": 64, "cond_scale_factor": 1, "is_group_bucket": True}


@pytest.mark.parametrize("name", MAKERS)
def test_samples_are_those_that_were_drawn(name: str, tmp_path: Path):
    made = MAKERS[name](tmp_path)
    data = pickle.loads(pickle.dumps(open_data_set(name, made.params | PUBLISHED)))
    assert keys(data) == [truth.key for truth in made.truths] and len(data.left_out) == 0
    for n, truth in enumerate(made.truths):
        sample, annotation = data[n], data.annotation(n)
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(truth.image).convert("RGB")))
        for layout in (sample.layout, annotation.layout):
            np.testing.assert_array_equal(layout.masks, truth.masks)
            assert (layout.captions, layout.caption, layout.name) == (truth.captions, truth.caption, truth.key)


@pytest.mark.parametrize("name", MAKERS)
def test_loader_processes_read_the_same(name: str, tmp_path: Path):
    data = open_data_set(name, MAKERS[name](tmp_path).params)
    expected = [data[n].layout.digest() for n in range(len(data))]  # opens lazily opened files before the fork
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    assert [sample.layout.digest() for batch in loader for sample in batch] == expected


def test_a_fresh_process_opens_the_table_itself(tmp_path: Path):
    data = open_data_set("sacap_1m", synthetic_data.make_sacap_1m(tmp_path).params)
    code = (
        "import pickle, sys; data = pickle.load(sys.stdin.buffer); print(*[data[n].layout.digest() for n in range(4)])"
    )
    found = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(data), capture_output=True, check=True)
    assert found.stdout.decode().split() == [data[n].layout.digest() for n in range(4)]


@pytest.mark.parametrize("name", MAKERS)
def test_the_fingerprint_depends_on_contents_only(name: str, tmp_path: Path):
    """Compare the fingerprints of three variants with the first.

    The same files elsewhere have the same; other contents, and one sample less, do not.
    """
    first, again = (open_data_set(name, MAKERS[name](tmp_path / place).params).fingerprint() for place in "ab")
    made = MAKERS[name](tmp_path / "c", seed=1)
    other = open_data_set(name, made.params).fingerprint()
    made.truths[0].image.unlink()
    fewer = skipping(name, made.params).fingerprint()
    assert first == again and len({first, other, fewer}) == 3 and len(first) == 64


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_photo_is_left_out_or_fails(name: str, tmp_path: Path):
    made = MAKERS[name](tmp_path)
    made.truths[1].image.unlink()
    data = skipping(name, made.params)
    assert keys(data) == [made.truths[n].key for n in (0, 2, 3)]
    assert [one.key for one in data.left_out] == [made.truths[1].key]
    np.testing.assert_array_equal(data[1].layout.masks, made.truths[2].masks)
    message = refused(name, made.params, "fail")
    assert "1 of 4 samples" in message and made.truths[1].key in message and "on_error=skip" in message
    assert made.truths[1].key in data.left_out[0].reason


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_left_and_wrong_parameters_are_refused(name: str, tmp_path: Path):
    made = MAKERS[name](tmp_path, n=2)
    assert "choose one of skip, fail" in refused(name, made.params, "sometimes")
    assert "unknown parameter 'cahe_root'" in refused(name, made.params | {"cahe_root": "x"})
    assert str(tmp_path / "nowhere") in refused(name, made.params | {"image_root": str(tmp_path / "nowhere")})
    for truth in made.truths:
        truth.image.rename(truth.image.with_suffix(".gone"))
    message = refused(name, made.params)
    assert "none of 2 samples can be used" in message or "holds no picture" in message


def test_the_captions_are_the_published_ones():
    ade, coco = (synthetic_data.read_captions(name) for name in ("ade20k", "coco_stuff"))
    assert list(ade) == list(range(1, 151)) and list(coco) == list(range(1, 183))
    assert (ade[24], ade[149], coco[171], coco[180]) == ("sofa,lounge", "clock", "brick wall", "blind window")
    assert [number for number, caption in coco.items() if caption == "door"] == [71, 112]


@pytest.mark.parametrize(
    ("name", "background", "first", "last", "unknown"),
    [("ade20k", 0, "wall", "flag", 151), ("coco_stuff", 255, "person", "wood", 182)],
)
def test_ids_of_label_maps(name: str, background: int, first: str, last: str, unknown: int, tmp_path: Path):
    """Check background, the first and the last class, and ids beyond the last."""
    made = MAKERS[name](tmp_path)
    segm = Path(made.params["segm_root"])
    paths = [segm / f"{truth.key}.png" for truth in made.truths]
    shape = made.truths[0].masks.shape[1:]
    low, high = (1, 150) if name == "ade20k" else (0, 181)
    labels = np.full(shape, background)
    labels[2], labels[3] = high, low
    synthetic_data.write_label_map(paths[0], labels)
    synthetic_data.write_label_map(paths[1], np.full(made.truths[1].masks.shape[1:], background))
    synthetic_data.write_label_map(paths[2], np.full(made.truths[2].masks.shape[1:], unknown))
    data = skipping(name, made.params)
    layout = data[0].layout
    assert layout.captions == (first, last) and layout.caption is None
    assert [np.flatnonzero(mask.any(1)).tolist() for mask in layout.masks] == [[3], [2]]
    assert keys(data) == [made.truths[0].key, made.truths[3].key]
    empty, strange = data.left_out
    assert (empty.key, strange.key) == (made.truths[1].key, made.truths[2].key)
    assert "only background" in empty.reason and str(paths[1]) in empty.reason
    assert f"unknown label {unknown}" in strange.reason and f"and {background} for background" in strange.reason


def test_every_kind_of_wrong_label_map_is_left_out_with_its_reason(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path, n=9)
    maps = [Path(made.params["segm_root"]) / f"{truth.key}.png" for truth in made.truths]
    photos = [truth.image for truth in made.truths]
    maps[1].unlink()
    maps[2].write_bytes(maps[2].read_bytes()[:-40])
    Image.new("RGB", (9, 9)).save(maps[3])
    photos[4].write_bytes(photos[4].read_bytes()[:-200])
    Image.new("RGB", (9, 9)).save(photos[5])
    shape = made.truths[6].masks.shape[1:]
    synthetic_data.write_label_map(maps[6], np.arange(np.prod(shape)).reshape(shape) % 64 + 1)
    indices = Image.fromarray(np.full(made.truths[7].masks.shape[1:], 5, np.uint8), "P")
    indices.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    indices.save(maps[7])
    data = skipping("ade20k", made.params)
    reasons = {one.key: one.reason for one in data.left_out}
    assert list(reasons) == [made.truths[n].key for n in (1, 2, 3, 4, 5, 6)]
    expected = ("no label map", "cannot be read", "RGB pixels", "cannot be read as an image", "is 9x9", "64 labels")
    for reason, part in zip(reasons.values(), expected, strict=True):
        assert part in reason and "\n" not in reason
    assert data[keys(data).index(made.truths[7].key)].layout.captions == ("tree",)  # palette indices are the ids


def test_pictures_are_checked_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = synthetic_data.make_ade20k(tmp_path)
    params = made.params | {"cache_root": str(tmp_path / "cache")}
    first = open_data_set("ade20k", params)
    seen = []

    def count(path: Path) -> np.ndarray:
        seen.append(path.name)
        return read_label_map(path)

    read_label_map = label_maps.read_label_map
    monkeypatch.setattr(label_maps, "read_label_map", count)
    assert open_data_set("ade20k", params).fingerprint() == first.fingerprint() and not seen
    changed = Path(made.params["segm_root"]) / f"{made.truths[2].key}.png"
    synthetic_data.write_label_map(changed, np.zeros(made.truths[2].masks.shape[1:]))
    data = skipping("ade20k", params)
    assert seen == [changed.name] and made.truths[2].key not in keys(data)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"damaged")
    assert skipping("ade20k", params).fingerprint() == data.fingerprint() and len(seen) == 5
    os.utime(changed, ns=(1, 1))
    skipping("ade20k", params)
    assert len(seen) == 6


def test_cached_checks_of_another_rule_or_of_other_files_are_ignored(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path, n=2)
    paths, kept, seen = [truth.image for truth in made.truths], tmp_path / "kept.parquet", []

    def check(path: Path, width: int = 1) -> tuple[int, int]:
        seen.append(path.name)
        return 3, width

    first = check_pictures(paths, check, "a rule", kept)
    assert check_pictures(paths[:1], check, "a rule", kept) == first[:1] and len(seen) == 2
    assert check_pictures(paths, partial(check, width=4), "another", kept)[1].size == (3, 4)
    pq.write_table(pa.table({"name": [path.name for path in paths]}), kept)
    assert len(check_pictures(paths, check, "another", kept)) == 2 and len(seen) == 6
    assert first[0].digest == hashlib.sha256(paths[0].read_bytes()).hexdigest()


def test_a_layout_without_a_photo_and_a_damaged_layout_are_left_out(tmp_path: Path):
    made = synthetic_data.make_folder(tmp_path, n=8)
    layouts, images = Path(made.params["layout_root"]), Path(made.params["image_root"])
    (layouts / "picture_2.json").write_text("{")
    np.savez(layouts / "picture_3.npz", masks=np.ones((1, 3, 3), bool), captions=np.array(["a cat"]))
    (images / "stranger.png").write_bytes((images / "picture_0.jpg").read_bytes())
    (images / "picture_5.jpg").unlink()
    data = skipping("folder", made.params)
    assert [one.key for one in data.left_out] == ["picture_2", "picture_3", "picture_5", "stranger"]
    expected = ("not valid JSON", "is 3x3", "no photo picture_5.*", "no layout has its name")
    for one, part in zip(data.left_out, expected, strict=True):
        assert part in one.reason
    assert keys(data) == ["picture_0", "picture_4", "picture_6", "picture_7", "picture_1"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_photo_cut_anywhere_is_refused_as_a_full_decoder_refuses_it(suffix: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    assert check_photo(whole) == (40, 60)
    path = tmp_path / f"cut{suffix}"
    for length in (len(content) - 1, len(content) - 2, len(content) - 13, *rng.integers(100, len(content), 12)):
        path.write_bytes(content[:length])
        try:
            Image.open(path).load()
        except OSError:
            with pytest.raises(SampleError, match=re.escape(str(path))):
                check_photo(path)
        else:  # only the last marker is missing, which no pixel needs
            assert check_photo(path) == (40, 60)
    path.write_bytes(content + bytes(100))  # some cameras and archives add bytes
    assert check_photo(path) == (40, 60)


def test_opening_a_data_set_decodes_no_whole_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = synthetic_data.make_ade20k(tmp_path)
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.filename) or load(image))
    data = open_data_set("ade20k", made.params)
    assert {Path(name).suffix for name in decoded} == {".png"} and len(data) == len(made.truths)
