"""SACap-1M on a small copy in its real format: table, json files and messages."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.data.caption_table import CaptionTable
from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import SampleError
from seg2any.data.sacap.__main__ import main
from seg2any.data.sacap.verify import Broken, check_json
from tests import synthetic_data
from tests.golden_root import golden_root
from tests.opened_data import keys, refused, rewrite, skipping
from tests.synthetic_data import Synthetic

EMPTY = {"size": [6, 8], "counts": [48]}


def test_sacap_rows_that_cannot_be_used(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=9)

    def spoil(rows: list[dict]) -> list[dict]:
        rows[1]["segments_info"] = []
        rows[2]["segments_info"] = None
        rows[3]["segments_info"][0]["caption"] = " \t"
        rows[4]["segments_info"] = [{"anno_id": n, "caption": "a cat"} for n in range(64)]
        rows[5]["segments_info"][0]["anno_id"] = None
        rows[7]["caption"] = None
        return [*rows, rows[0]]

    rewrite(made, spoil)
    made.truths[6].image.with_suffix(".json").unlink()
    data = skipping("sacap_1m", made.params)
    assert keys(data) == [made.truths[n].key for n in (0, 7, 8)] and data.rows.tolist() == [0, 7, 8]
    assert data[1].layout.caption is None and data[1].layout.captions == made.truths[7].captions
    reasons = [one.reason for one in data.left_out]
    expected = (
        "is empty",
        "is empty",
        "no caption",
        "more than 63",
        "no anno_id",
        ".json: no such file",
        "earlier row",
    )
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason, reason
    assert [one.key for one in data.left_out] == [made.truths[n].key for n in (1, 2, 3, 4, 5, 6, 0)]
    assert f"row {1}:" in reasons[0] and made.params["seg_caption_path"] in reasons[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda doc: {"annotations": doc["annotations"][:-1] + [{"id": 3}]}, "lacks annotation"),
        (lambda doc: {"image": {}}, "no list of annotations"),
        (lambda doc: [1], "no list of annotations"),
        (lambda doc: {"annotations": [one | {"segmentation": None} for one in doc["annotations"]]}, "size is None"),
        (lambda doc: {"annotations": doc["annotations"] * 2}, "has an annotation twice"),
        (lambda doc: {"annotations": [one | {"id": [one["id"]]} for one in doc["annotations"]]}, "lacks annotation"),
        (lambda doc: {"annotations": [one | {"segmentation": EMPTY} for one in doc["annotations"]]}, "has a pixel"),
    ],
)
def test_a_json_that_does_not_fit_is_reported_when_it_is_read(change: Callable, said: str, tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=1, n_masks=2)
    rewrite(made, lambda rows: [rows[0] | {"segments_info": every_region(made)}])
    path = made.truths[0].image.with_suffix(".json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    message = refused("sacap_1m", made.params)
    assert said in message and str(path) in message
    path.write_text('{"annotations": [')
    with pytest.raises(SampleError, match="not valid JSON"):
        open_data_set("sacap_1m", made.params).annotation(0)


def test_training_and_verify_agree_on_numbers_that_json_writers_make_floats(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=1)
    path = made.truths[0].image.with_suffix(".json")
    document = json.loads(path.read_text())
    for one in document["annotations"]:
        one["id"] = float(one["id"])
    path.write_text(json.dumps(document))
    data = open_data_set("sacap_1m", made.params)
    assert data[0].layout.captions == made.truths[0].captions
    check_json(path.read_bytes(), data[0].layout.size, set(data.table.row(0).anno_ids))
    document["annotations"][0]["area"] = float("nan")  # NaN is not valid JSON
    path.write_text(json.dumps(document))
    assert "NaN is not a JSON number" in refused("sacap_1m", made.params)
    with pytest.raises(Broken, match="NaN is not a JSON number"):
        check_json(path.read_bytes(), (1, 1), set())


def every_region(made: Synthetic) -> list[dict]:
    document = json.loads(made.truths[0].image.with_suffix(".json").read_text())
    return [{"anno_id": one["id"], "caption": "a cat"} for one in document["annotations"]]


def test_a_photo_that_is_damaged_or_of_another_size_is_reported_when_it_is_read(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=2)
    Image.new("RGB", (9, 7)).save(made.truths[0].image)
    assert f"{made.truths[0].image}: it is 9x7" in refused("sacap_1m", made.params)
    made.truths[0].image.write_bytes(b"\xff\xd8\xff")
    assert "cannot be read as an image" in refused("sacap_1m", made.params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["imagename"]), "column 'imagename' is missing; it has image_group, caption"),
        (lambda table: table.drop_columns(["segments_info"]), "column 'segments_info' is missing"),
        (lambda table: table.drop_columns(["caption"]), "column 'caption' is missing"),
        (lambda table: with_segments(table, ["a"] * len(table)), "column 'segments_info' is string"),
        (lambda table: with_segments(table, [[{"anno_id": 1}]] * len(table)), "column 'segments_info' is list<"),
        (lambda table: table.slice(0, 0), "holds no sample"),
        (None, "cannot be read as parquet"),
    ],
)
def test_a_table_of_another_kind_is_refused(change: Callable | None, said: str, tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=2)
    path = Path(made.params["seg_caption_path"])
    if change is None:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        pq.write_table(change(pq.read_table(path)), path)
    for params in (made.params, {k: v for k, v in made.params.items() if k != "cache_root"}):
        message = refused("sacap_1m", params)
        assert said in message
    assert not [one for one in Path(made.params["cache_root"]).glob("*") if "tmp" in one.name]
    path.unlink()
    assert f"there is no file {path}; give" in refused("sacap_1m", made.params)


def with_segments(table: pa.Table, values: list) -> pa.Table:
    return table.set_column(table.column_names.index("segments_info"), "segments_info", pa.array(values))


def test_column_types_of_other_writers_are_read(tmp_path: Path):
    """Read the Arrow types of other writers.

    pandas and datasets write large strings, categories and large lists, and the test split has more fields.
    """
    made = synthetic_data.make_sacap_1m(tmp_path, groups=0)
    path = Path(made.params["seg_caption_path"])
    table = pq.read_table(path)
    segments = [[one | {"short_caption": "x"} for one in row] for row in table["segments_info"].to_pylist()]
    kind = pa.struct({"anno_id": pa.int32(), "caption": pa.large_string(), "short_caption": pa.string()})
    columns = {
        "extra": pa.array(range(len(table))),
        "imagename": table["imagename"].cast(pa.large_string()),
        "segments_info": pa.array(
            [[one | {"anno_id": one["anno_id"] % 2**31} for one in row] for row in segments]
        ).cast(pa.large_list(kind)),
        "caption": table["caption"].combine_chunks().dictionary_encode(),
    }
    pq.write_table(pa.table(columns), path)
    data = open_data_set("sacap_1m", made.params)
    for n, truth in enumerate(made.truths):
        assert (data.key(n), data[n].layout.captions) == (truth.key, truth.captions)
        np.testing.assert_array_equal(data[n].layout.masks, truth.masks)


def test_the_table_is_mapped_renewed_and_not_sent_to_workers(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=6)
    path, cache = Path(made.params["seg_caption_path"]), Path(made.params["cache_root"])
    in_memory, mapped = CaptionTable(path, None), CaptionTable(path, cache)
    rows = [in_memory.row(n) for n in range(6)]
    assert rows == [mapped.row(n) for n in range(6)] and in_memory.digest() == mapped.digest()
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    assert CaptionTable(path, cache).row(0) == rows[0] and kept.stat().st_mtime_ns == stamp
    kept.write_bytes(kept.read_bytes()[:-300])
    assert CaptionTable(path, cache).row(5) == rows[5] and kept.stat().st_mtime_ns != stamp
    rewrite(made, lambda rows: rows[::-1])
    assert [CaptionTable(path, cache).row(n) for n in range(6)] == rows[::-1]
    sent = pickle.dumps(open_data_set("sacap_1m", made.params))
    assert rows[0].captions[0].encode() not in sent and len(sent) < 2000


@pytest.mark.parametrize("column", ["imagename", "image_group", "caption", "segments_info"])
def test_a_row_whose_text_is_not_utf_8_is_left_out(column: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    made = synthetic_data.make_sacap_1m(tmp_path, n=3, groups=1, n_masks=1)
    path = Path(made.params["seg_caption_path"])
    table = pq.read_table(path)
    texts = pa.array([b"caf\xe9", b"sky", b"sea"]).buffers()
    wrong = pa.Array.from_buffers(pa.string(), 3, texts)
    if column == "segments_info":
        ids = table[column].combine_chunks().flatten().field("anno_id")
        wrong = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([ids, wrong], ["anno_id", "caption"]))
    elif column != "caption":  # the others keep their names
        kept = [b"caf\xe9", *(value.encode() for value in table[column].to_pylist()[1:])]
        wrong = pa.Array.from_buffers(pa.string(), 3, pa.array(kept).buffers())
    pq.write_table(table.set_column(table.column_names.index(column), column, wrong), path)
    data = skipping("sacap_1m", made.params)
    assert keys(data) == [truth.key for truth in made.truths[1:]] and len([data[n] for n in range(2)]) == 2
    assert [one.reason for one in data.left_out] == [f"{path}: row 0: text is not UTF-8"]
    assert main(["plan", str(path), "--output", str(tmp_path / "plan.parquet")]) == 0
    assert "1 of 3 rows are left out, here and in training: text is not UTF-8" in capsys.readouterr().out


def test_samples_follow_the_parquet_and_regions_the_json(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path)
    rewrite(made, lambda rows: [row | {"segments_info": row["segments_info"][::-1]} for row in rows[::-1]])
    data = open_data_set("sacap_1m", made.params)
    assert keys(data) == [truth.key for truth in made.truths[::-1]]
    for n, truth in enumerate(made.truths[::-1]):
        assert data[n].layout.captions == truth.captions
        np.testing.assert_array_equal(data[n].layout.masks, truth.masks)


def test_only_the_extracted_groups_are_used(tmp_path: Path):
    made = synthetic_data.make_sacap_1m(tmp_path, n=7, groups=3)
    group = made.truths[1].image.parent
    group.rename(group.with_name("elsewhere"))
    data = skipping("sacap_1m", made.params)
    assert data.rows.tolist() == [0, 2, 3, 5, 6] and [one.key for one in data.left_out] == [
        made.truths[n].key for n in (1, 4)
    ]


def test_the_synthetic_run_lengths_are_those_of_the_published_files():
    """Decode published run lengths and encode them with the synthetic writer.

    They have to be equal byte for byte.
    """
    recorded = sorted(golden_root().glob("train/*/*/*.json"))  # the folders of a recorded SACap-1M
    if not recorded:
        pytest.skip("the golden subset has no SA-1B json")
    from seg2any.layout.rle import decode_rle

    for path in recorded:
        for one in json.loads(path.read_text())["annotations"]:
            mask = decode_rle(path.name, one["segmentation"])
            assert synthetic_data.encode_rle(mask) == one["segmentation"]["counts"]
