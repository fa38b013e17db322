"""Damaged and unusual data files: one line per fault, and no wrong sample in training."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

import prepare_dataset_bucket_map
import train
from seg2any.data import left_out
from seg2any.data.catalog import open_data_set
from seg2any.data.sacap.__main__ import main
from seg2any.system.weights import file_digest
from tests import synthetic_data
from tests.golden_root import REPOSITORY
from tests.opened_data import keys, refused, rewrite, skipping

pytestmark = pytest.mark.slow

BAD_NAME = b"/caf\xe9"  # Latin-1, as old archives have it
needs_any_name = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are UTF-8 there")


def faults(made: synthetic_data.Synthetic, **params: str) -> dict[str, str]:
    return {one.key: one.reason for one in skipping("ade20k", made.params | params).left_out}


def test_unreadable_pictures_are_left_out_and_tried_again(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path, n=4)
    first, second = made.truths[0].image, Path(made.params["segm_root"]) / f"{made.truths[1].key}.png"
    whole = first.read_bytes()
    first.unlink()
    first.symlink_to(tmp_path / "nowhere")
    second.unlink()
    second.mkdir()
    found = faults(made, cache_root=str(tmp_path / "cache"))
    assert list(found) == [made.truths[0].key, made.truths[1].key]
    assert found[made.truths[0].key].startswith(f"{first}: cannot be read (No such file")
    assert found[made.truths[1].key].startswith(f"{second}: cannot be read (Is a directory")
    (tmp_path / "nowhere").write_bytes(whole)
    assert list(faults(made, cache_root=str(tmp_path / "cache"))) == [made.truths[1].key]


def test_disk_errors_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = synthetic_data.make_ade20k(tmp_path, n=3)
    params, forbidden = made.params | {"cache_root": str(tmp_path / "cache")}, made.truths[1].image

    def deny(path: Path) -> str:
        if path == forbidden:
            raise PermissionError(13, "Permission denied")
        return file_digest(path)

    monkeypatch.setattr("seg2any.data.picture_index.file_digest", deny)
    assert len(skipping("ade20k", params)) == 2
    monkeypatch.undo()  # chmod leaves bytes and modification time unchanged
    assert len(open_data_set("ade20k", params)) == 3


def test_pictures_that_would_be_misread_are_left_out(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path, n=3)
    photo, labels = made.truths[0].image, Path(made.params["segm_root"]) / f"{made.truths[1].key}.png"
    deep = np.full(made.truths[0].masks.shape[1:], 0.5, np.float32)
    photo.unlink()
    Image.fromarray(deep).save(photo.with_suffix(".tif"))
    Image.new("L", made.truths[1].masks.shape[:0:-1], 5).save(labels.with_suffix(".jpg"))
    labels.unlink()
    found = faults(made)
    assert "F pixels (over 16 bits); save the photo with 8 bits" in found[made.truths[0].key]
    assert "JPEG changes labels" in found[made.truths[1].key]


@pytest.mark.parametrize("palette", ["greys in order", "greys in another order", "colours"])
def test_palette_indices_are_labels_unless_the_palette_is_grey_levels(palette: str, tmp_path: Path):
    """Distinguish palette indices from grey levels.

    Programs that shrink PNGs store few grey levels as a palette, numbered from 0.
    """
    made = synthetic_data.make_ade20k(tmp_path, n=3)
    path = Path(made.params["segm_root"]) / f"{made.truths[1].key}.png"
    labels = np.asarray(Image.open(path))
    shown = np.repeat(np.arange(256), 3)
    if palette == "greys in another order":
        greys, labels = np.unique(labels, return_inverse=True)
        shown = np.repeat(greys, 3)
    elif palette == "colours":
        shown[[3, 4, 5]] = 128, 0, 0  # all other entries stay grey
        shown[6:] = 99
    small = Image.fromarray(labels.reshape(made.truths[1].masks.shape[1:]).astype(np.uint8))
    small.putpalette(shown.astype(np.uint8).tobytes())
    small.save(path)
    if palette == "greys in another order":
        assert "grey palette is in another order" in faults(made)[made.truths[1].key]
        return
    data = open_data_set("ade20k", made.params)
    np.testing.assert_array_equal(data[1].layout.masks, made.truths[1].masks)


def test_pictures_of_one_pixel_and_of_one_row_are_pictures(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path, n=2)
    for truth, size in zip(made.truths, ((1, 1), (900, 1)), strict=True):
        Image.new("RGB", size).save(truth.image)
        Image.new("L", size, 5).save(Path(made.params["segm_root"]) / f"{truth.key}.png")
    data = open_data_set("ade20k", made.params)
    assert [data[n].layout.size for n in range(2)] == [(1, 1), (1, 900)]


@needs_any_name
@pytest.mark.parametrize("name", ["ade20k", "folder"])
def test_a_photo_whose_name_is_not_utf_8_is_reported(name: str, tmp_path: Path):
    made = {"ade20k": synthetic_data.make_ade20k, "folder": synthetic_data.make_folder}[name](tmp_path)
    os.rename(made.truths[0].image, os.fsencode(made.truths[0].image.parent) + BAD_NAME + b".jpg")
    said = refused(name, made.params)
    assert "caf\\udce9.jpg" in said and "is not UTF-8; rename it" in said and said.isascii()


@needs_any_name
def test_names_that_are_not_utf_8_among_sacaps_images_are_ignored(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path)
    (Path(os.fsdecode(os.fsencode(made.truths[0].image.parent) + BAD_NAME))).touch()
    assert keys(open_data_set("sacap_1m", made.params)) == [truth.key for truth in made.truths]


def test_names_with_spaces_and_letters_of_all_kinds_are_kept(tmp_path: Path):
    made = synthetic_data.make_ade20k(tmp_path / "my data ü")
    name = "Bild\u202f猫 1.2"
    made.truths[0].image.rename(made.truths[0].image.with_name(f"{name}.jpg"))
    labels = Path(made.params["segm_root"])
    (labels / f"{made.truths[0].key}.png").rename(labels / f"{name}.png")
    data = open_data_set("ade20k", made.params | {"cache_root": str(tmp_path / "a cache")})
    assert keys(data)[-1] == name and data[3].layout.name == name


@pytest.mark.parametrize("name", ["ade20k", "sacap_1m"])
def test_a_cache_that_cannot_be_written_is_one_line(name: str, tmp_path: Path):
    made = {"ade20k": synthetic_data.make_ade20k, "sacap_1m": synthetic_data.make_sacap_1m}[name](tmp_path)
    blocked = tmp_path / "file"
    blocked.touch()
    said = refused(name, made.params | {"cache_root": str(blocked)})
    assert said == f"cache_root {blocked}: cannot be written (File exists); name another folder, or null"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_layouts_of_one_name_are_refused(kind: str, tmp_path: Path):
    made = synthetic_data.make_folder(tmp_path)  # picture_1 is a folder, picture_2 a JSON, picture_3 an npz
    layouts = Path(made.params["layout_root"])
    name = {"file": "picture_2", "folder": "picture_1"}[kind]
    shutil.copy(layouts / "picture_3.npz", layouts / f"{name}.npz")
    said = refused("folder", made.params)
    assert name in said and "has the same name; remove or move one of them" in said


def test_strange_groups_and_repeated_regions_leave_out_their_rows(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=6)

    def spoil(rows: list[dict]) -> list[dict]:
        rows[0]["image_group"] = "a\0b"
        rows[1]["image_group"] = "no such group"
        rows[2]["segments_info"].append(rows[2]["segments_info"][0])
        rows[5]["imagename"], rows[5]["image_group"] = rows[3]["imagename"], rows[3]["image_group"]
        return rows

    rewrite(made, spoil)
    data = skipping("sacap_1m", made.params)
    reasons = [one.reason for one in data.left_out]
    assert len(reasons) == 4 and "row 5: an earlier row has an image of the same name" in reasons[-1]
    assert "row 2: two regions have the same anno_id" in reasons[2] and len(data) == 2
    rewrite(made, lambda rows: [rows[3] | {"image_group": "a" * 300}])
    assert "cannot be listed (File name too long)" in refused("sacap_1m", made.params)


def damage(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(len(content) // 3) + content[20 + len(content) // 3 :])


def struct(path: Path, table: pa.Table) -> None:
    first = table["segments_info"].combine_chunks().flatten().take(list(range(len(table))))
    pq.write_table(table.drop_columns(["segments_info"]).append_column("segments_info", first), path)


@pytest.mark.parametrize(
    ("change", "said"),
    [(damage, ": cannot be read as parquet ("), (struct, "'segments_info' is struct<anno_id: int64")],
)
def test_the_tools_refuse_damaged_and_other_tables_in_one_line(change: Callable, said: str, tmp_path: Path, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path)
    path = Path(made.params["seg_caption_path"])
    change(path, pq.read_table(path))
    assert main(["verify", str(path), "--root", made.params["image_root"]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sacap: {path}: ") and said in line


def test_the_tools_read_categories_and_refuse_an_empty_group(tmp_path: Path, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path)
    path, plan = Path(made.params["seg_caption_path"]), tmp_path / "plan.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "image_group", table["image_group"].dictionary_encode()), path)
    assert main(["plan", str(path), "--output", str(plan)]) == 0
    assert len(open_data_set("sacap_1m", made.params | {"seg_caption_path": str(plan)})) == 4
    assert main(["verify", str(path), "--groups", " ,"]) == 2
    assert "names no group" in capsys.readouterr().err


def test_the_tools_leave_out_the_rows_that_training_leaves_out(tmp_path: Path, capsys):
    """Check that tools and training leave out the same rows.

    Images of bad rows are not extracted, and the other rows are not delayed by them.
    """
    made = synthetic_data.make_sacap_1m(tmp_path, n=8)

    def spoil(rows: list[dict]) -> list[dict]:
        rows[1]["segments_info"][0]["anno_id"] = None
        rows[2]["segments_info"] = []
        rows[3]["segments_info"][0]["caption"] = " "
        rows[4]["segments_info"] *= 2
        rows[5]["imagename"] = None
        rows[6]["segments_info"] = None
        return rows

    rewrite(made, spoil)
    path, whole = Path(made.params["seg_caption_path"]), tmp_path / "whole.parquet"
    usable = [0, 7]
    assert keys(skipping("sacap_1m", made.params)) == [made.truths[n].key for n in usable]
    assert "6 of 8 samples" in refused("sacap_1m", made.params, "fail")
    assert main(["verify", str(path), "--root", made.params["image_root"], "--output", str(whole)]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 images are whole" in out
    first = f"a region has no anno_id or no caption; the first is row 1 ({made.truths[1].image.name})"
    assert f"2 of 8 rows are left out, here and in training: {first}" in out
    assert "2 of 8 rows are left out, here and in training: segments_info is empty" in out
    assert "imagename is missing; the first is row 5 (no name)" in out and "the same anno_id; the first is row 4" in out
    assert [row["imagename"] for row in pq.read_table(whole).to_pylist()] == [made.truths[n].image.name for n in usable]
    made.truths[1].image.unlink()  # the image of a row that the plan does not use
    assert main(["plan", str(path), "--output", str(tmp_path / "plan.parquet")]) == 0
    assert pq.read_table(tmp_path / "plan.parquet").num_rows == 2


def test_the_scripts_say_in_one_line_what_is_left_out(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_ade20k(tmp_path)
    made.truths[1].image.unlink()
    params = made.params | {"cache_root": str(tmp_path / "cache")}
    arguments = [str(REPOSITORY / "config/seg2any_ade20k.yaml"), "--data.val.type=null", "--resolution=128"]
    arguments += [f"--data.train.params.{name}={value}" for name, value in params.items()]
    arguments += [f"--model.pretrained_model_name_or_path={REPOSITORY / 'examples/shapes/model'}"]
    monkeypatch.setattr(sys, "argv", ["prepare_dataset_bucket_map.py", *arguments, "--workers=1"])
    for run in (prepare_dataset_bucket_map.main, lambda: train.main([*arguments, "--dry_run"])):
        assert run() == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
        assert len(lines) == 1 and "Warning" not in lines[0] and ".py" not in lines[0]
        assert lines[0].startswith("warning: data set ade20k: 1 of 4 samples are left out; the first is ")
        assert made.truths[1].key in lines[0]


def test_only_one_of_several_processes_reports_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = synthetic_data.make_ade20k(tmp_path)
    made.truths[0].image.unlink()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_data_set("ade20k", made.params)) == 3
    assert "1 of 4 samples" in refused("ade20k", made.params, "fail")
    monkeypatch.setenv("RANK", "0")
    assert len(skipping("ade20k", made.params)) == 3


def test_every_left_out_sample_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(left_out, "LISTED", 3)
    for name, listed in (("ade20k", "ade20k-training-left_out.tsv"), ("sacap_1m", "anno_train-left_out.tsv")):
        made = getattr(synthetic_data, f"make_{name}")(tmp_path / name, n=6)
        path = tmp_path / name / "cache" / listed
        params = made.params | {"cache_root": str(path.parent)}
        photos = {truth.key: truth.image.read_bytes() for truth in made.truths}
        for count in (5, 2):
            for truth in made.truths[:count]:
                truth.image.unlink()
            data = skipping(name, params)
            lines = [line.split("\t") for line in path.read_text().splitlines()]
            assert lines[:3] == [[one.key, one.reason] for one in list(data.left_out)[:3]]
            assert lines[3:] == ([["...", "and 2 more"]] if count == 5 else [])
            assert f"(all: {path})" in refused(name, params, "fail")
            for truth in made.truths[:count]:
                truth.image.write_bytes(photos[truth.key])
        assert len(open_data_set(name, params)) == 6 and not path.exists()


@pytest.mark.parametrize("turn", [3, 6])
def test_exif_orientation_is_ignored_in_published_data_sets(turn: int, tmp_path: Path):
    """Check that photos are as stored where label maps and jsons were published for the stored pixels.

    6 swaps the sides, which would be noticed; 3 turns by 180 degrees, which would not.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    for name in ("ade20k", "sacap_1m"):
        made = getattr(synthetic_data, f"make_{name}")(tmp_path / name)
        truth = made.truths[0]
        with Image.open(truth.image) as image:
            stored = np.asarray(image)  # turning changes pixels far more than saving again does
            image.save(truth.image, exif=exif, quality="keep")
        data = open_data_set(name, made.params)
        assert not data.left_out
        sample = data[keys(data).index(truth.key)]
        assert np.abs(sample.image.astype(int) - stored).max() < 16 and (sample.layout.masks == truth.masks).all()


def test_a_rotated_photo_is_left_out_with_a_hint_at_exif(tmp_path: Path):
    made = synthetic_data.make_folder(tmp_path)
    for truth in made.truths[:2]:
        with Image.open(truth.image) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(truth.image)
    reasons = [one.reason for one in skipping("folder", made.params).left_out]
    assert len(reasons) == 2 and all("EXIF" in reason for reason in reasons)
