"""The bucket map: correct for every data set, refused when stale, readable as published."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from seg2any.attention.settings import ConditionSettings
from seg2any.data import count
from seg2any.data.bucket_map import (
    METADATA,
    PUBLISHED,
    SCHEMA,
    UNUSABLE,
    BucketMap,
    Origin,
    PublishedMapWarning,
    read_origin,
    write_tables,
)
from seg2any.data.catalog import open_data_set
from seg2any.data.count import RowCounter
from seg2any.data.regions import EMPTY_REGION, REGION_WITHOUT_TOKEN
from seg2any.layout.contour import condition_image, kept_tokens, resize_masks
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE
from seg2any.system.weights import tokenizer_digest
from seg2any.training import config
from seg2any.training.token_counts import map_path, open_map, origin_of
from tests import synthetic_data
from tests.counted_data import Squares, Words, squares_config, squares_counter
from tests.golden_root import REPOSITORY

MODEL = REPOSITORY / "examples" / "shapes" / "model"
DATA_SETS = {
    "ade20k": synthetic_data.make_ade20k,
    "coco_stuff": synthetic_data.make_coco_stuff,
    "sacap_1m": synthetic_data.make_sacap_1m,
    "folder": synthetic_data.make_folder,
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL, subfolder="tokenizer_2")


def written(path: Path, data: Squares) -> BucketMap:
    counter = squares_counter(data, squares_config(path.parent))
    write_tables(path, counter.origin, [counter(range(len(data)))])
    return BucketMap.read(path, counter.origin)


# Counted rows


@pytest.mark.parametrize("aspect", ["stretch", "bucket"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_rows_follow_from_masks_and_captions(name: str, aspect: str, tmp_path: Path, tokenizer):
    made = DATA_SETS[name](tmp_path, 5)
    data = open_data_set(name, made.params)
    settings = config.Config(resolution=128)
    settings.data.aspect = aspect
    settings.model.condition = ConditionSettings(
        cond_scale_factor=2, max_sequence_length=40, regional_max_sequence_length=10
    )
    counter = RowCounter(data, tokenizer, origin_of(data, tokenizer, 16, settings))
    rows = counter(range(len(data))).to_pylist()
    assert [row["key"] for row in rows] == [truth.key for truth in made.truths]
    for index, (row, truth) in enumerate(zip(rows, made.truths, strict=True)):
        length = [len(tokenizer(text).input_ids) for text in truth.captions]
        caption = 0 if truth.caption is None else len(tokenizer(truth.caption).input_ids)
        assert row["txt_seq_len"] == sum(length) + caption
        assert row["txt_len_trunc"] == sum(min(n, 10) for n in length) + min(caption, 40)
        size = row["height"], row["width"]
        if aspect == "stretch":
            assert size == (128, 128)
            masks = resize_masks(truth.masks, size)
        else:
            from seg2any.data.aspect import fit, target_size

            sample = data[index]
            assert size == target_size(sample.layout.size, 128, "bucket", 32)
            masks = fit(sample, size, "bucket").layout.masks
        assert row["cond_seq_len"] == kept_tokens(condition_image(masks, (size[0] // 2, size[1] // 2)), 16).sum()
        assert row["flags"] & EMPTY_REGION == 0


def test_flags_and_unusable_samples(tmp_path: Path):
    data = Squares(10, broken=(2, 7), empty=(4,))
    rows = squares_counter(data, squares_config(tmp_path))(range(10)).to_pylist()
    assert [row["flags"] & UNUSABLE > 0 for row in rows] == [n in (2, 7) for n in range(10)]
    assert [row["flags"] & EMPTY_REGION > 0 for row in rows] == [n == 4 for n in range(10)]
    assert any(row["flags"] & REGION_WITHOUT_TOKEN for row in rows)
    assert rows[2] == {name: 0 for name in SCHEMA.names} | {"key": "square_2", "flags": UNUSABLE}
    with pytest.raises(UserError, match="square_2.json: is damaged"):
        squares_counter(data, squares_config(tmp_path), "fail")(range(10))


def test_hand_counted_rows(tmp_path: Path):
    rows = squares_counter(Squares(7), squares_config(tmp_path))(range(6, 7)).to_pylist()
    # 7 words and </s> in the region's caption, cut at 4, and as many in the global one, cut at 6. The square lies in
    # rows 3 and 4, columns 6 and 7 of 32: rows 6 to 9, columns 12 to 15 of 64, so it touches the first of 2 x 2 tokens.
    assert rows == [
        {
            "cond_seq_len": 1,
            "txt_seq_len": 16,
            "key": "square_6",
            "txt_len_trunc": 10,
            "height": 64,
            "width": 64,
            "flags": REGION_WITHOUT_TOKEN,
        }
    ]


def test_the_file_has_the_published_columns_first_and_says_what_it_was_counted_from(tmp_path: Path):
    path = map_path(squares_config(tmp_path))
    assert path == tmp_path / "32H_32W-group_bucket.parquet"
    found = written(path, Squares(20))
    table = pq.read_table(path)
    assert table.column_names[:2] == PUBLISHED == ["cond_seq_len", "txt_seq_len"]
    assert table.schema.field("cond_seq_len").type == table.schema.field("txt_seq_len").type == pa.int64()
    assert read_origin(path).rows == len(found) == 20
    np.testing.assert_array_equal(found.txt_seq_len, table["txt_seq_len"].to_numpy())
    assert found.aspect.tolist() == [0] * 20


# Refused maps


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Origin)])
def test_a_map_of_other_origin_is_refused_with_the_difference(field: str, tmp_path: Path):
    path = tmp_path / "map.parquet"
    written(path, Squares(5))
    origin = read_origin(path)
    old = getattr(origin, field)
    new = old + 1 if isinstance(old, int) else "f" * 64 if len(old) == 64 else "bucket"
    with pytest.raises(UserError) as error:
        BucketMap.read(path, dataclasses.replace(origin, **{field: new}))
    shown = {old: f"{old[:12]}...", new: "ffffffffffff..."} if new == "f" * 64 else {old: old, new: new}
    assert f"{path}: it was counted for {field} {shown[old]}, not {shown[new]};" in str(error.value)
    assert "prepare_dataset_bucket_map.py" in str(error.value) and "\n" not in str(error.value)


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "map.parquet"
    written(path, Squares(300))
    origin = read_origin(path)
    with pytest.raises(UserError, match=r"none\.parquet: no such file; make it with prepare_dataset_bucket_map"):
        BucketMap.read(tmp_path / "none.parquet", origin)
    whole = path.read_bytes()
    for broken in (b"", b"hello", whole[: len(whole) // 2], whole[:100] + bytes(500) + whole[600:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=rf"{path}: .*(cannot be read|is damaged)") as error:
            BucketMap.read(path, origin)
        assert "\n" not in str(error.value)
    pq.write_table(pa.table({"cond_seq_len": [1.5], "txt_seq_len": [2]}), path)
    with pytest.raises(UserError, match="cond_seq_len"):
        BucketMap.read(path, origin)
    pq.write_table(pa.table({"cond_seq_len": [1, None], "txt_seq_len": [2, 3]}), path)
    with pytest.raises(UserError, match="rows have no number"):
        BucketMap.read(path, origin)
    columns = pa.table({"cond_seq_len": [1], "txt_seq_len": [2]})
    pq.write_table(columns.replace_schema_metadata({METADATA: '{"rows": 1, "shape": 2}'}), path)
    with pytest.raises(UserError, match="written by another version"):
        BucketMap.read(path, origin)


def test_tokenizers_are_told_apart_and_their_state_does_not_matter(tokenizer):
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a", "b c d"], padding="longest", truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == digest != tokenizer_digest(Words())


# Published files


def published(path: Path, found: BucketMap, order: np.ndarray) -> None:
    pq.write_table(pa.table({name: getattr(found, name)[order] for name in PUBLISHED}), path)


def test_a_published_file_is_read_with_a_warning_and_tried_on_some_samples(tmp_path: Path):
    settings, data = squares_config(tmp_path), Squares(60)
    path = map_path(settings)
    ours = written(path, data)
    published(path, ours, np.arange(60))
    with pytest.warns(PublishedMapWarning, match="does not say what it was counted from"):
        found = open_map(data, Words(), 16, settings)
    np.testing.assert_array_equal(found.cond_seq_len, ours.cond_seq_len)
    np.testing.assert_array_equal(found.txt_len_trunc, ours.txt_seq_len)
    assert set(found.height) == set(found.width) == {64} and not found.flags.any()

    published(path, ours, np.random.default_rng(0).permutation(60))
    with pytest.raises(UserError, match=r"sample \d+ has .* but square_\d+ has .* other data or settings"):
        open_map(data, Words(), 16, settings)
    published(path, ours, np.arange(59))
    with pytest.raises(UserError, match="59 rows, .* 60 samples"):
        open_map(data, Words(), 16, settings)
    settings.data.aspect = "bucket"
    with pytest.raises(UserError, match="data.aspect bucket"):
        open_map(data, Words(), 16, settings)


def test_a_published_file_serves_a_data_set_that_leaves_rows_out(tmp_path: Path):
    settings, whole = squares_config(tmp_path), Squares(60)
    path = map_path(settings)
    ours = written(path, whole)
    published(path, ours, np.arange(60))
    rows = np.array([3, 4, 17, 59])
    origin = dataclasses.replace(read_origin_of(whole, settings), rows=4)

    def count(indices) -> pa.Table:
        return squares_counter(whole, settings)([int(rows[n]) for n in indices])

    with pytest.warns(PublishedMapWarning):
        found = BucketMap.read(path, origin, count, rows)
    np.testing.assert_array_equal(found.txt_seq_len, ours.txt_seq_len[rows])
    with pytest.raises(UserError, match="60 rows, .* row 60"):
        BucketMap.read(path, origin, count, rows + 1)


def read_origin_of(data: Squares, settings: config.Config) -> Origin:
    return origin_of(data, Words(), 16, settings)


def test_a_published_file_is_moved_aside_not_replaced(tmp_path: Path):
    settings, data = squares_config(tmp_path), Squares(10)
    path = map_path(settings)
    published(path, written(path, data), np.arange(10))
    before = path.read_bytes()
    counter = squares_counter(data, settings)
    count.make_map(path, counter, ALONE, 1, show_progress=False)
    assert path.with_suffix(".published.parquet").read_bytes() == before
    assert BucketMap.read(path, counter.origin)
