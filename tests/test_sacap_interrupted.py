"""Extraction killed, interrupted or out of disk space: no half file, no repeated work."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from seg2any.data.sacap import extract as extract_module
from seg2any.data.sacap.__main__ import main
from seg2any.data.sacap.extract import extract_tar
from seg2any.data.sacap.report import Meter, progress_bar, run_tasks
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY
from tests.sacap_tars import COMMAND, job_of, make_source, make_tar, meter, tree
from tests.sessions import processes_of, wait_until
from tests.synthetic_data import make_sacap_1m, write_sacap_parquet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("sa1b"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 600 images in 3 groups, enough for a kill in the middle.

    All have the same picture and masks.
    """
    root = tmp_path_factory.mktemp("many") / "SACap-1M"
    make_sacap_1m(root.parent, n=1, groups=1)
    (row,) = pq.read_table(root / "annotations/anno_train.parquet").to_pylist()
    jpg, text = ((root / "raw/sa_000000" / row["imagename"]).with_suffix(end).read_bytes() for end in (".jpg", ".json"))
    rows = [{**row, "imagename": f"sa_{i}.jpg", "image_group": f"sa_{i % 3:06d}"} for i in range(600)]
    write_sacap_parquet(root / "annotations/anno_train.parquet", rows)
    (root / "tars").mkdir()
    shutil.rmtree(root / "raw")
    for group in range(3):
        members = [
            (f"sa_{i}{end}", data) for i in range(group, 600, 3) for end, data in ((".jpg", jpg), (".json", text))
        ]
        make_tar(root / f"tars/sa_{group:06d}.tar", members)
        for name, data in members:
            path = root / f"raw/sa_{group:06d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def start_extract(many: Path, raw: Path) -> subprocess.Popen:
    arguments = ["--tar_dir", many / "tars", "--output", raw, "--workers", "2"]
    command = [*COMMAND, "extract", many / "annotations/anno_train.parquet", *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=REPOSITORY,
        stdout=-1,
        stderr=-1,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let background jobs ignore SIGINT
    )


def count(raw: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(raw))


def is_deaf_to_ctrl_c(process: int) -> bool:
    """Return whether a worker blocks or ignores SIGINT.

    Otherwise an idle worker would print a traceback.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    masks = {line.split()[0]: int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigIgn"))}
    return bool((masks["SigBlk:"] | masks["SigIgn:"]) & 1 << (signal.SIGINT - 1))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers of a killed process in /proc")
def test_killed_runs_go_on_without_redoing_or_corrupting(many: Path, tmp_path: Path):
    raw, truth, randomly = tmp_path / "raw", tree(many / "raw"), random.Random(7)
    goal, kept = 0, {}
    for _ in range(2):
        goal += randomly.randint(20, 400)
        with start_extract(many, raw) as process:
            wait_until(lambda goal=goal: count(raw) >= goal)
            process.kill()
        wait_until(lambda leader=process.pid: not processes_of(leader))  # no worker outlives the run
        assert count(raw) < len(truth), "finished before it was killed: nothing was tested"
        there = {name: data for name, data in tree(raw).items() if not Path(name).name.startswith(".")}
        assert all(truth[name] == data for name, data in there.items())
        for name, status in kept.items():  # files of the first run are still the same files
            assert ((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) == status
        kept = {name: ((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) for name in there}
    (raw / "sa_000000/.sa_0.0123abcd.tmp.jpg").write_bytes(b"half")  # in case no kill hit a write
    for path in raw.rglob(".*.tmp.*"):
        os.utime(path, (time.time() - 3600,) * 2)
    with start_extract(many, raw) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"600 of 600 images are in" in out
    assert tree(raw) == truth
    assert all(((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) == kept[name] for name in kept)


def test_a_kill_in_the_middle_of_a_write_leaves_no_half_file(source: Path, tmp_path: Path):
    """Kill the process while its fourth file is written but not yet on disk."""
    script = f"""
import os, signal, sys
from pathlib import Path
from seg2any.data.sacap.extract import extract_tar
from tests import sacap_tars as tools
calls, fsync = [], os.fsync
def dying(descriptor):
    calls.append(descriptor)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying
source = Path({str(source)!r})
extract_tar(tools.job_of(source, source / "tars/sa_000000.tar", Path({str(tmp_path)!r})), tools.meter())
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY).returncode == -signal.SIGKILL
    truth, left = tree(source / "raw/sa_000000"), tree(tmp_path)
    assert {name: data for name, data in left.items() if name[0] != "."} == dict(sorted(truth.items())[:3])
    (half,) = (name for name in left if name[0] == ".")
    os.utime(tmp_path / half, (time.time() - 3600,) * 2)
    shutil.copytree(tmp_path, tmp_path / "raw/sa_000000")  # copies times too
    arguments = ["--tar_dir", str(source / "tars"), "--output", str(tmp_path / "raw"), "--groups", "0"]
    assert main(["extract", str(source / "annotations/anno_train.parquet"), *arguments]) == 0
    assert tree(tmp_path / "raw/sa_000000") == truth


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers of a process in /proc")
@pytest.mark.parametrize("moment", ["when workers start", "in the middle"])
def test_ctrl_c_ends_in_one_line(many: Path, tmp_path: Path, moment: str):
    with start_extract(many, tmp_path / "raw") as process:
        if moment == "in the middle":
            wait_until(lambda: count(tmp_path / "raw") >= 5)
            assert all(map(is_deaf_to_ctrl_c, set(processes_of(process.pid)) - {process.pid}))
        else:
            wait_until(lambda: len(processes_of(process.pid)) >= 3)
        os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err and b"start again to go on" in err.splitlines()[-1]
    assert not list((tmp_path / "raw").rglob(".*"))  # every write was finished


def test_files_that_are_there_are_not_read_again(source: Path, tmp_path: Path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(source / "raw", raw)
    (tmp_path / "tars").mkdir()  # tars are no longer needed
    annotations = str(source / "annotations/anno_train.parquet")
    assert main(["extract", annotations, "--tar_dir", str(tmp_path / "tars"), "--output", str(raw)]) == 0
    os.remove(raw / "sa_000001/sa_223757.json")
    report = tmp_path / "problems.tsv"
    arguments = ["--tar_dir", str(tmp_path / "tars"), "--output", str(raw), "--report", str(report)]
    assert main(["extract", annotations, *arguments]) == 1
    assert "8 of 9 images are in" in (out := capsys.readouterr().out) and "sa_000001.tar is not in" in out
    assert report.read_text().splitlines()[1].startswith("sa_000001\tsa_223757.jpg\tsa_223757.jpg\tmissing\t")


def test_a_disk_too_small_is_refused_before_anything_is_written(source: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(extract_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=(1 << 28) + 9_000_000))
    arguments = [str(source / "annotations/anno_train.parquet"), "--tar_dir", str(source / "tars")]
    assert main(["extract", *arguments, "--output", str(tmp_path / "raw")]) == 2
    assert "9.36 MB are needed, but 9 MB are free" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_a_disk_that_fills_up_stops_the_run(source: Path, tmp_path: Path, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract_module, "atomic_write", full)
    with pytest.raises(UserError, match=r"sa_223750.jpg: cannot be written \(No space left on device\)"):
        extract_tar(job_of(source, source / "tars/sa_000000.tar", tmp_path), meter())


def test_a_dying_worker_ends_the_run(capsys):
    with pytest.raises(UserError, match="a worker process was killed"), progress_bar("two tasks", 2) as bar:
        list(run_tasks(die, [1, 2], 2, bar))


def die(task: int, meter: Meter) -> None:
    os._exit(9)
