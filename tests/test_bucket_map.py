"""The bucket map: right for every data set, whoever counts it, interrupted or not; refused when stale."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import prepare_dataset_bucket_map
from seg2any import config
from seg2any.contour import condition_image, kept_tokens, resize_masks
from seg2any.data import count_map
from seg2any.data.bucket_map import (
    METADATA,
    PUBLISHED,
    SCHEMA,
    UNUSABLE,
    BucketMap,
    Origin,
    PublishedMapWarning,
    map_path,
    origin_of,
    read_origin,
    tokenizer_digest,
    write_tables,
)
from seg2any.data.catalog import open_data_set
from seg2any.data.count_map import Parts, Share, number_of_workers, share_of
from seg2any.data.count_rows import RowCounter, open_map
from seg2any.data.lengths import EMPTY_REGION, REGION_WITHOUT_TOKEN
from seg2any.errors import UserError
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


# What is counted


@pytest.mark.parametrize("aspect", ["stretch", "bucket"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_rows_follow_from_masks_and_captions(name: str, aspect: str, tmp_path: Path, tokenizer):
    made = DATA_SETS[name](tmp_path, 5)
    data = open_data_set(name, made.params)
    settings = config.Config(resolution=128, cond_scale_factor=2)
    settings.data.aspect = aspect
    settings.model.max_sequence_length, settings.model.regional_max_sequence_length = 40, 10
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


# What is refused


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
    assert f"{path}: was counted for {field} {shown[old]}, not {shown[new]};" in str(error.value)
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
        with pytest.raises(UserError, match=rf"{path}: (cannot be read|is damaged)") as error:
            BucketMap.read(path, origin)
        assert "\n" not in str(error.value)
    pq.write_table(pa.table({"cond_seq_len": [1.5], "txt_seq_len": [2]}), path)
    with pytest.raises(UserError, match="no column of whole numbers 'cond_seq_len', so it is no bucket map"):
        BucketMap.read(path, origin)
    pq.write_table(pa.table({"cond_seq_len": [1, None], "txt_seq_len": [2, 3]}), path)
    with pytest.raises(UserError, match="rows without a number"):
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
    with pytest.raises(UserError, match=r"says that sample \d+ has .* but square_\d+ has .* other data or settings"):
        open_map(data, Words(), 16, settings)
    published(path, ours, np.arange(59))
    with pytest.raises(UserError, match="has 59 rows, the data set 60 samples"):
        open_map(data, Words(), 16, settings)
    settings.data.aspect = "bucket"
    with pytest.raises(UserError, match="for square images; data.aspect is bucket"):
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
    with pytest.raises(UserError, match="has 60 rows, the data set needs row 60"):
        BucketMap.read(path, origin, count, rows + 1)


def read_origin_of(data: Squares, settings: config.Config) -> Origin:
    return origin_of(data, Words(), 16, settings)


def test_a_published_file_is_moved_aside_not_replaced(tmp_path: Path):
    settings, data = squares_config(tmp_path), Squares(10)
    path = map_path(settings)
    published(path, written(path, data), np.arange(10))
    before = path.read_bytes()
    counter = squares_counter(data, settings)
    count_map.count_map(path, counter, Share(), 1, show_progress=False)
    assert path.with_suffix(".published.parquet").read_bytes() == before
    assert BucketMap.read(path, counter.origin)


# Parts, shares, processes


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_map, "PART", 7)
    monkeypatch.setattr(count_map, "MERGED", 3)


def counted_at_once(folder: Path, data: Squares) -> bytes:
    settings = squares_config(folder)
    count_map.count_map(map_path(settings), squares_counter(data, settings), Share(), 1, show_progress=False)
    assert [path.name for path in folder.iterdir()] == [map_path(settings).name]  # no part is left
    return map_path(settings).read_bytes()


def test_parts_together_are_the_map(tmp_path: Path, small_parts):
    data = Squares(50, broken=(11,))
    counted_at_once(tmp_path, data)
    counter = squares_counter(data, squares_config(tmp_path))
    expected = counter(range(50))
    assert pq.read_table(map_path(squares_config(tmp_path))).replace_schema_metadata(None) == expected


def test_shares_count_everything_once_and_the_last_one_puts_it_together(tmp_path: Path, small_parts):
    expected = counted_at_once(tmp_path / "whole", Squares(50))
    settings, data = squares_config(tmp_path / "shares"), Squares(50)
    path, counter = map_path(settings), squares_counter(data, settings)
    for number in (2, 0, 1):
        assert not path.exists()
        said = count_map.count_map(path, counter, Share(number, 3), 1, show_progress=False)
        assert ("left to the other shards" in said) == (number != 1)
    assert path.read_bytes() == expected
    said = count_map.count_map(path, counter, Share(1, 3), 1, show_progress=False)
    assert said == f"{path}: is up to date, 50 rows"


def test_whoever_merges_second_finds_the_work_done(tmp_path: Path, small_parts, monkeypatch: pytest.MonkeyPatch):
    settings, data = squares_config(tmp_path), Squares(50)
    path, counter = map_path(settings), squares_counter(data, settings)
    parts = Parts(path, counter.origin)
    list(count_map._in_this_process(parts, counter, parts.ranges))
    other = Parts._tables

    def overtaken(self):
        monkeypatch.setattr(Parts, "_tables", other)
        parts.merge()
        return other(self)

    monkeypatch.setattr(Parts, "_tables", overtaken)
    parts.merge()
    assert parts.is_finished() and not parts.folder.exists()


def test_parts_of_other_settings_are_not_used_and_a_stale_map_is_replaced(tmp_path: Path, small_parts):
    settings, data = squares_config(tmp_path), Squares(30)
    counter = squares_counter(data, settings)
    path = map_path(settings)
    count_map.count_map(path, counter, Share(0, 2), 1, show_progress=False)  # leaves parts behind
    settings.model.regional_max_sequence_length = 2
    other = squares_counter(data, settings)
    count_map.count_map(path, other, Share(), 1, show_progress=False)
    assert BucketMap.read(path, other.origin).txt_len_trunc.max() <= 2 + 6
    settings.model.regional_max_sequence_length = 3
    count_map.count_map(path, squares_counter(data, settings), Share(), 1, show_progress=False)
    assert BucketMap.read(path, squares_counter(data, settings).origin)


def test_a_damaged_part_is_named(tmp_path: Path, small_parts):
    settings, data = squares_config(tmp_path), Squares(30)
    path, counter = map_path(settings), squares_counter(data, settings)
    count_map.count_map(path, counter, Share(0, 2), 1, show_progress=False)
    damaged = next(Parts(path, counter.origin).folder.iterdir())
    damaged.write_bytes(b"half")
    with pytest.raises(UserError, match=f"{damaged}: is damaged; remove it and run the same command again"):
        count_map.count_map(path, counter, Share(1, 2), 1, show_progress=False)
    assert not path.exists()


def spoil_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:10] + bytes(300) + content[310:])


def spoil_origin(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({METADATA: '{"rows": 1, "shape": 2}'}), path)


@pytest.mark.parametrize("spoil", [spoil_footer, spoil_pages, spoil_origin])
def test_a_damaged_map_is_made_again(spoil, tmp_path: Path):
    settings, data = squares_config(tmp_path), Squares(300)
    path, counter = map_path(settings), squares_counter(data, settings)
    count_map.count_map(path, counter, Share(), 1, show_progress=False)
    whole = path.read_bytes()
    spoil(path)
    with pytest.raises(UserError, match="make it again with prepare_dataset_bucket_map.py"):
        BucketMap.read(path, counter.origin)
    count_map.count_map(path, counter, Share(), 1, show_progress=False)
    assert path.read_bytes() == whole
    assert [found.name for found in tmp_path.rglob("*.parquet")] == [path.name]


def test_a_part_with_damaged_pages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(count_map, "PART", 150)
    settings, data = squares_config(tmp_path), Squares(300)
    path, counter = map_path(settings), squares_counter(data, settings)
    count_map.count_map(path, counter, Share(0, 2), 1, show_progress=False)
    spoil_pages(damaged := next(Parts(path, counter.origin).folder.iterdir()))
    with pytest.raises(UserError, match=f"{damaged}: is damaged; remove it"):
        count_map.count_map(path, counter, Share(1, 2), 1, show_progress=False)


def test_a_second_run_that_finds_the_map_finished_by_another_leaves_nothing(tmp_path: Path, small_parts, monkeypatch):
    settings, data = squares_config(tmp_path), Squares(30)
    path, counter = map_path(settings), squares_counter(data, settings)
    replace, calls = os.replace, []

    def overtaken(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:  # while this run writes its second part, the other one does everything
            count_map.count_map(path, counter, Share(), 1, show_progress=False)
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    assert "30 rows" in count_map.count_map(path, counter, Share(), 1, show_progress=False)
    assert BucketMap.read(path, counter.origin) and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("shard", "environment", "expected"),
    [
        ("0/1", {}, Share(0, 1)),
        ("3/16", {}, Share(3, 16)),
        ("0/1", {"RANK": "1", "WORLD_SIZE": "4"}, Share(1, 4)),
        ("2/3", {"RANK": "1", "WORLD_SIZE": "4"}, Share(9, 12)),
    ],
)
def test_shares_of_array_jobs_and_torchrun(shard: str, environment: dict, expected: Share):
    assert share_of(shard, environment) == expected


@pytest.mark.parametrize("shard", ["1/1", "-1/2", "0/0", "a/b", "1", "1/2/3", ""])
def test_impossible_shards_are_refused(shard: str):
    with pytest.raises(UserError, match="--shard .*: is no share; give i/n"):
        share_of(shard, {})


def test_workers_share_the_cores_of_a_machine():
    assert number_of_workers(3, {"LOCAL_WORLD_SIZE": "2"}) == 3
    assert number_of_workers(None, {"LOCAL_WORLD_SIZE": "1000"}) == 1
    assert number_of_workers(None, {}) >= 1
    with pytest.raises(UserError, match="--workers 0"):
        number_of_workers(0, {})


DRIVER = """
import sys
from pathlib import Path
from seg2any.data import count_map
from seg2any.data.bucket_map import map_path
from tests.counted_data import Squares, squares_config, squares_counter
if __name__ == "__main__":
    count_map.PART = 7
    settings, data = squares_config(Path(sys.argv[1])), Squares(140, seconds=float(sys.argv[2]))
    path = map_path(settings)
    print(count_map.count_map(path, squares_counter(data, settings), count_map.Share(), 2, show_progress=False))
"""


def start_counting(folder: Path, seconds: float) -> subprocess.Popen:
    """The 140 samples in 20 parts, by 2 workers."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(driver), str(folder / "cache"), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def processes_of(session: int) -> list[int]:
    """Of a session that are neither gone nor zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def waited_for(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = start_counting(tmp_path, seconds=0.05)
    cache = tmp_path / "cache"
    assert waited_for(lambda: len(list(cache.glob("*-parts-*/rows-*.parquet"))) >= 3)
    assert len(processes_of(run.pid)) >= 3  # it has workers
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert waited_for(lambda: not processes_of(run.pid), 30), "workers outlive the run"
    done = {path: path.stat().st_mtime_ns for path in cache.glob("*-parts-*/rows-*.parquet")}
    assert 3 <= len(done) < 20 and not list(cache.glob("*.parquet"))

    again = start_counting(tmp_path, seconds=0.05)
    touched = {}
    while again.poll() is None:  # what was counted is not counted again
        for path in done:
            try:
                touched[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                break
        time.sleep(0.02)
    assert again.returncode == 0 and "140 rows" in again.stdout.read()
    assert touched == done
    monkeypatch.setattr(count_map, "PART", 7)
    (path,) = cache.glob("*.parquet")
    assert path.read_bytes() == counted_at_once(tmp_path / "whole", Squares(140))


def test_what_a_worker_refuses_ends_the_run(tmp_path: Path, small_parts):
    settings, data = squares_config(tmp_path), Squares(50, broken=(30,))
    counter = squares_counter(data, settings, "fail")
    with pytest.raises(UserError, match="square_30.json: is damaged"):
        count_map.count_map(map_path(settings), counter, Share(), 2, show_progress=False)
    assert not map_path(settings).exists()


# The command


def published_config(folder: Path, params: dict) -> Path:
    path = folder / "sacap.yaml"
    lines = "".join(f"      {name}: {value}\n" for name, value in params.items())
    path.write_text(
        "resolution: 128\ncond_scale_factor: 2\n"
        "data:\n  train:\n    target: dataset.sacap_1m_dataset.SACap_1M_Dataset\n    params:\n"
        f"{lines}      resolution: 128\n      cond_scale_factor: 2\n      is_group_bucket: false\n"
        f"model:\n  pretrained_model_name_or_path: {MODEL}\n"
    )
    return path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_dataset_bucket_map.py", *map(str, arguments)])
    return prepare_dataset_bucket_map.main()


def test_the_published_command_line_under_torchrun_equals_one_process(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 6)
    path = published_config(tmp_path, made.params)
    arguments = [str(path), "--data.train.params.is_group_bucket=True", "--workers", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "prepare_dataset_bucket_map.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *arguments], check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    found = Path(made.params["cache_root"]) / "64H_64W-group_bucket.parquet"
    by_two = found.read_bytes()
    found.unlink()
    assert run_main(monkeypatch, *arguments) == 0
    assert f"{found}: 6 rows" in capsys.readouterr().out
    assert found.read_bytes() == by_two
    data = open_data_set("sacap_1m", made.params)
    settings = config.load(arguments[:2])
    tokenizer = AutoTokenizer.from_pretrained(MODEL, subfolder="tokenizer_2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_map(data, tokenizer, 16, settings)) == 6


def test_train_sh_counts_the_data_it_trains_on(tmp_path: Path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    subset = "--data.train.params.seg_caption_path=subset.parquet"
    command, environment = ["bash", "train.sh", "sacap_1m", subset], os.environ | {"PYTHON": str(stub)}
    said = subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True).stdout
    counting, training = (line.split() for line in said.splitlines())
    assert (counting[0], training[0]) == ("prepare_dataset_bucket_map.py", "train.py")
    assert counting[1:] == training[1:] and counting[-1] == subset


def test_wrong_input_is_one_line(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 3)
    path = published_config(tmp_path, made.params)
    shutil.rmtree(made.params["image_root"])
    for arguments, message in (
        (["--shard", "0/1"], "no config is given; see --help"),
        (["none.yaml"], "none.yaml: no such config file"),
        ([path, "--data.trian.type=shapes"], "unknown key 'data.trian"),
        ([path, "--shard", "2/2"], "--shard 2/2: is no share"),
        ([path, "--workers", "0"], "--workers 0: give at least 1"),
        ([path, "--data.train.params.cache_root=null"], "cache_root: is not given"),
        ([path, "--data.train.params.cache_root=5"], "cache_root: is 5; name the folder"),
        ([path], f"no folder {made.params['image_root']}"),
    ):
        assert run_main(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("prepare_dataset_bucket_map.py: ") and said.count("\n") == 1 and message in said


def test_sizes_without_a_token_and_blocked_folders_are_one_line(tmp_path: Path, monkeypatch, capsys):
    made = synthetic_data.make_sacap_1m(tmp_path, 3)
    made.params.pop("cache_root")
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "64H_64W-group_bucket.parquet").mkdir(parents=True)
    path = published_config(tmp_path, made.params)
    for arguments, message in (
        (["--resolution=8"], "resolution: 8 with cond_scale_factor 2 is less than one token of 16 pixels"),
        (["--cond_scale_factor=999"], "or lower cond_scale_factor"),
        (["--data.train.params.resolution=512"], "data.train.params.resolution: is 512, but resolution is 128"),
        ([f"--trainer.cache_dir={tmp_path / 'file'}"], "cannot be written (Not a directory); make room, or name"),
        ([f"--trainer.cache_dir={tmp_path / 'taken'}"], "cannot be written (Is a directory)"),
    ):
        base = [path, "--workers", "1", f"--trainer.cache_dir={tmp_path}"]
        assert run_main(monkeypatch, *base, *arguments) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line[:12] not in ("", "count tokens")]
        assert said.startswith("prepare_dataset_bucket_map.py: ") and message in said


def test_help_teaches(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, "--help")
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in ("--shard", "--workers", "torchrun", "is_group_bucket", "cache_root"):
        assert word in said
