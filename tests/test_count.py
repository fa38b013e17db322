"""Counting a data set in parts: shared, killed or continued, the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seg2any.commands.prepare import with_shard
from seg2any.data import count
from seg2any.data.bucket_map import METADATA, BucketMap
from seg2any.data.count import Parts
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process
from seg2any.training.token_counts import map_path
from tests.counted_data import Squares, squares_config, squares_counter
from tests.golden_root import REPOSITORY
from tests.sessions import processes_of, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "PART", 7)
    monkeypatch.setattr(count, "MERGED", 3)


def counted_at_once(folder: Path, data: Squares) -> bytes:
    settings = squares_config(folder)
    count.make_map(map_path(settings), squares_counter(data, settings), ALONE, 1, show_progress=False)
    assert [path.name for path in folder.iterdir()] == [map_path(settings).name]  # no part remains
    return map_path(settings).read_bytes()


def test_parts_together_are_the_map(tmp_path: Path, small_parts):
    data = Squares(50, broken=(11,))
    counted_at_once(tmp_path, data)
    counter = squares_counter(data, squares_config(tmp_path))
    expected = counter(range(50))
    assert pq.read_table(map_path(squares_config(tmp_path))).replace_schema_metadata(None) == expected


def test_shares_count_everything_once_and_the_last_one_merges(tmp_path: Path, small_parts):
    expected = counted_at_once(tmp_path / "whole", Squares(50))
    settings, data = squares_config(tmp_path / "shares"), Squares(50)
    path, counter = map_path(settings), squares_counter(data, settings)
    for number in (2, 0, 1):
        assert not path.exists()
        said = count.make_map(path, counter, Process(number, 3), 1, show_progress=False)
        assert ("left to the other shards" in said) == (number != 1)
    assert path.read_bytes() == expected
    said = count.make_map(path, counter, Process(1, 3), 1, show_progress=False)
    assert said == f"{path}: up to date, 50 rows"


def test_parts_of_a_shard_with_other_data_are_reported(tmp_path: Path, small_parts):
    settings = squares_config(tmp_path)
    path, old = map_path(settings), squares_counter(Squares(49), settings)
    count.make_map(path, old, Process(0, 2), 1, show_progress=False)
    new = squares_counter(Squares(50), settings)
    said = count.make_map(path, new, Process(1, 2), 1, show_progress=False)
    assert "4 of 8 parts are left to the other shards; " in said
    assert f"{Parts(path, old.origin).folder.name} holds parts of other data or settings, which do not count" in said
    assert count.make_map(path, new, Process(0, 2), 1, show_progress=False) == f"{path}: 50 rows"


def test_a_second_merger_finds_the_map_finished(tmp_path: Path, small_parts, monkeypatch: pytest.MonkeyPatch):
    settings, data = squares_config(tmp_path), Squares(50)
    path, counter = map_path(settings), squares_counter(data, settings)
    parts = Parts(path, counter.origin)
    list(count._in_this_process(parts, counter, parts.ranges))
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
    count.make_map(path, counter, Process(0, 2), 1, show_progress=False)  # leaves parts behind
    settings.model.condition = settings.model.condition.override({"regional_max_sequence_length": 2})
    other = squares_counter(data, settings)
    count.make_map(path, other, ALONE, 1, show_progress=False)
    assert BucketMap.read(path, other.origin).txt_len_trunc.max() <= 2 + 6
    settings.model.condition = settings.model.condition.override({"regional_max_sequence_length": 3})
    count.make_map(path, squares_counter(data, settings), ALONE, 1, show_progress=False)
    assert BucketMap.read(path, squares_counter(data, settings).origin)


def test_a_damaged_part_is_named(tmp_path: Path, small_parts):
    settings, data = squares_config(tmp_path), Squares(30)
    path, counter = map_path(settings), squares_counter(data, settings)
    count.make_map(path, counter, Process(0, 2), 1, show_progress=False)
    damaged = next(Parts(path, counter.origin).folder.iterdir())
    damaged.write_bytes(b"half")
    with pytest.raises(UserError, match=f"{damaged}: .*damaged"):
        count.make_map(path, counter, Process(1, 2), 1, show_progress=False)
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
    count.make_map(path, counter, ALONE, 1, show_progress=False)
    whole = path.read_bytes()
    spoil(path)
    with pytest.raises(UserError, match="make it again with prepare_dataset_bucket_map.py"):
        BucketMap.read(path, counter.origin)
    count.make_map(path, counter, ALONE, 1, show_progress=False)
    assert path.read_bytes() == whole
    assert [found.name for found in tmp_path.rglob("*.parquet")] == [path.name]


def test_a_part_with_damaged_pages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(count, "PART", 150)
    settings, data = squares_config(tmp_path), Squares(300)
    path, counter = map_path(settings), squares_counter(data, settings)
    count.make_map(path, counter, Process(0, 2), 1, show_progress=False)
    spoil_pages(damaged := next(Parts(path, counter.origin).folder.iterdir()))
    with pytest.raises(UserError, match=f"{damaged}: .*damaged"):
        count.make_map(path, counter, Process(1, 2), 1, show_progress=False)


def test_a_second_run_that_finds_the_map_finished_by_another_leaves_nothing(tmp_path: Path, small_parts, monkeypatch):
    settings, data = squares_config(tmp_path), Squares(30)
    path, counter = map_path(settings), squares_counter(data, settings)
    replace, calls = os.replace, []

    def overtaken(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:  # another run finishes everything while this one writes its second part
            count.make_map(path, counter, ALONE, 1, show_progress=False)
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    assert "30 rows" in count.make_map(path, counter, ALONE, 1, show_progress=False)
    assert BucketMap.read(path, counter.origin) and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("shard", "environment", "expected"),
    [
        ("0/1", {}, Process(0, 1)),
        ("3/16", {}, Process(3, 16)),
        ("0/1", {"RANK": "1", "WORLD_SIZE": "4"}, Process(1, 4)),
        ("1/2", {"RANK": "3"}, Process(1, 2)),
        ("2/3", {"RANK": "1", "WORLD_SIZE": "4"}, Process(9, 12)),
    ],
)
def test_shares_of_array_jobs_and_torchrun(shard: str, environment: dict, expected: Process):
    assert with_shard(shard, Process.of(environment)) == expected


@pytest.mark.parametrize("shard", ["1/1", "-1/2", "0/0", "a/b", "1", "1/2/3", ""])
def test_impossible_shards_are_refused(shard: str):
    with pytest.raises(UserError, match="--shard"):
        with_shard(shard, ALONE)


def test_workers_share_the_cores_of_a_machine():
    assert Process(local_count=10**6).cores == 1 <= ALONE.cores


DRIVER = """
import sys
from pathlib import Path
from seg2any.data import count
from seg2any.training.token_counts import map_path
from seg2any.system.processes import ALONE
from tests.counted_data import Squares, squares_config, squares_counter
if __name__ == "__main__":
    count.PART = 7
    settings, data = squares_config(Path(sys.argv[1])), Squares(140, seconds=float(sys.argv[2]))
    path = map_path(settings)
    print(count.make_map(path, squares_counter(data, settings), ALONE, 2, show_progress=False))
"""


def start_counting(folder: Path, seconds: float) -> subprocess.Popen:
    """Start counting the 140 samples in 20 parts with 2 workers."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(driver), str(folder / "cache"), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = start_counting(tmp_path, seconds=0.05)
    cache = tmp_path / "cache"
    wait_until(lambda: len(list(cache.glob("*-parts-*/rows-*.parquet"))) >= 3)
    assert len(processes_of(run.pid)) >= 3  # the run has workers
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not processes_of(run.pid), 30)  # no worker outlives the run
    done = {path: path.stat().st_mtime_ns for path in cache.glob("*-parts-*/rows-*.parquet")}
    assert 3 <= len(done) < 20 and not list(cache.glob("*.parquet"))

    again = start_counting(tmp_path, seconds=0.05)
    touched = {}
    while again.poll() is None:  # finished parts are not counted again
        for path in done:
            try:
                touched[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                break
        time.sleep(0.02)
    assert again.returncode == 0 and "140 rows" in again.stdout.read()
    assert touched == done
    monkeypatch.setattr(count, "PART", 7)
    (path,) = cache.glob("*.parquet")
    assert path.read_bytes() == counted_at_once(tmp_path / "whole", Squares(140))


def test_an_error_in_a_worker_ends_the_run(tmp_path: Path, small_parts):
    settings, data = squares_config(tmp_path), Squares(50, broken=(30,))
    counter = squares_counter(data, settings, "fail")
    with pytest.raises(UserError, match="square_30.json: is damaged"):
        count.make_map(map_path(settings), counter, ALONE, 2, show_progress=False)
    assert not map_path(settings).exists()
