"""SACap-1M out of SA-1B's tars: the right files and no others, whatever the tars, the names and the timing are."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.data.sacap import extract as extract_module
from seg2any.data.sacap.__main__ import main
from seg2any.data.sacap.check import HOLE, Broken, check_jpeg, check_json
from seg2any.data.sacap.extract import Job, extract_tar
from seg2any.data.sacap.options import parse_options
from seg2any.data.sacap.subset import Subset, in_groups
from seg2any.data.sacap.table import read_annotations
from seg2any.data.sacap.tars import index_tar
from seg2any.data.sacap.verify import Job as VerifyJob
from seg2any.data.sacap.verify import verify_images
from seg2any.data.sacap.workers import Meter, Progress, progress_bar, run_tasks
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.errors import UserError
from tests.golden_root import REPOSITORY
from tests.synthetic_data import SACAP_SCHEMA, make_sacap_1m, write_sacap_parquet

COMMAND = [sys.executable, "-m", "seg2any.data.sacap"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """annotations/anno_train.parquet of 9 images in 3 groups, raw/ with their files, tars/ with these and others."""
    root = tmp_path_factory.mktemp("sa1b") / "SACap-1M"
    make_sacap_1m(root.parent, n=9, groups=3)
    (root / "tars").mkdir()
    for group in sorted((root / "raw").iterdir()):
        make_tar(root / "tars" / f"{group.name}.tar", [*stuffing(group.name), *files_of(group)])
    return root


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(f"./{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]


def stuffing(group: str) -> list[tuple[str, bytes]]:
    """Members that nobody asks for."""
    return [(f"./{group}9{i}.{kind}", os.urandom(700 + i)) for i in range(3) for kind in ("jpg", "json")]


def make_tar(path: Path, members: list[tuple[str, bytes]], **arguments: int) -> None:
    with tarfile.open(path, "w", **arguments) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def job_of(source: Path, tar: Path, folder: Path, group: str = "sa_000000") -> Job:
    annotations = read_annotations(source / "annotations" / "anno_train.parquet")
    rows = np.flatnonzero(in_groups(annotations, group))
    return Job(tar, folder, annotations.images(group, rows))


def meter() -> Meter:
    return Meter(Progress([0], [0], SimpleNamespace(value=False)), 0)


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


# --- the whole way -------------------------------------------------------------------------------


def test_plan_extract_verify_and_train_on_a_subset(source: Path, tmp_path: Path):
    plan, raw = tmp_path / "annotations" / "subset.parquet", tmp_path / "raw"
    before = {path: (hashlib.sha256(path.read_bytes()).digest(), path.stat()) for path in (source / "tars").iterdir()}

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([*COMMAND, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True)

    planned = run("plan", source / "annotations/anno_train.parquet", "--limit", 4, "--output", plan)
    assert planned.returncode == 0, planned.stderr
    extracted = run("extract", plan, "--tar_dir", source / "tars", "--output", raw, "--workers", 2)
    assert extracted.returncode == 0, extracted.stderr
    assert "4 of 4 images are in" in extracted.stdout and "image/s" in extracted.stderr

    names = pq.read_table(plan).to_pylist()
    assert [row["image_group"] for row in names].count("sa_000000") == 3  # a whole tar before the next one
    wanted = {f"{row['image_group']}/{Path(row['imagename']).stem}{end}" for row in names for end in (".jpg", ".json")}
    truth = tree(source / "raw")
    assert tree(raw) == {name: truth[name] for name in wanted}
    for path, (digest, status) in before.items():
        assert hashlib.sha256(path.read_bytes()).digest() == digest
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (status.st_mtime_ns, status.st_ino)

    assert run("verify", plan, "--root", raw).returncode == 0
    data = SACap1MDataset(str(plan), str(raw))
    assert len(data) == 4 and not data.left_out
    assert all(data[i].image.shape[:2] == data[i].layout.masks.shape[1:] for i in range(4))


def test_a_plan_keeps_columns_order_and_knows_exact_sizes(source: Path, tmp_path: Path, capsys):
    whole, plan = source / "annotations/anno_train.parquet", tmp_path / "plan.parquet"
    arguments = ["--tar_dir", str(source / "tars"), "--scan", "--groups", "sa_000002,0", "--workers", "1"]
    assert main(["plan", str(whole), "--output", str(plan), *arguments]) == 0
    rows, found = pq.read_table(whole).to_pylist(), pq.read_table(plan).to_pylist()
    expected = [row for row in rows if row["image_group"] != "sa_000001"]
    assert [{key: row[key] for key in SACAP_SCHEMA.names} for row in found] == expected
    for row in found:
        path = source / "raw" / row["image_group"] / row["imagename"]
        assert row["jpg_bytes"] == path.stat().st_size
        assert row["json_bytes"] == path.with_suffix(".json").stat().st_size
    lines = [line.split("\t") for line in (tmp_path / "plan.tars.tsv").read_text().splitlines()]
    written = sum(row["jpg_bytes"] + row["json_bytes"] for row in found if row["image_group"] == "sa_000002")
    captions = sum(len(row["segments_info"]) for row in found if row["image_group"] == "sa_000002")
    assert lines[2] == ["sa_000002.tar", "3", str(captions), str(written), "exact", str(source / "tars/sa_000002.tar")]
    assert "2 tars" in capsys.readouterr().out
    annotations = read_annotations(plan)  # a plan is an annotation file
    assert len(annotations) == 6 and annotations.bytes(np.arange(6)) < 6 * 20_000


def test_a_plan_says_what_is_lacking_and_where_to_get_it(source: Path, tmp_path: Path, capsys):
    whole, plan = source / "annotations/anno_train.parquet", tmp_path / "plan.parquet"
    (tmp_path / "tars").mkdir()
    cut = (source / "tars/sa_000000.tar").read_bytes()[:12_000]
    (tmp_path / "tars/sa_000000.tar").write_bytes(cut)
    links = tmp_path / "links.txt"
    links.write_text(
        "file_name\tcdn_link\nsa_000000.tar\thttps://x/0\nsa_000001.tar\thttps://x/1\nsa_9.tar\thttps://x\n"
    )
    arguments = ["--tar_dir", str(tmp_path / "tars"), "--scan", "--workers", "1", "--links", str(links)]
    assert main(["plan", str(whole), "--output", str(plan), *arguments]) == 1
    out = capsys.readouterr().out
    assert "sa_000000.tar: lacks" in out and "cut off at byte 12000" in out
    assert "1 tars have no link" in out and "sa_000002.tar" in out
    assert (tmp_path / "plan.links.txt").read_text() == "file_name\tcdn_link\nsa_000001.tar\thttps://x/1\n"


def test_a_plan_does_not_overwrite_an_annotation_file(source: Path, tmp_path: Path, capsys):
    original = shutil.copy(source / "annotations/anno_train.parquet", tmp_path / "a.parquet")
    before = Path(original).read_bytes()
    assert main(["plan", str(original), "--output", str(original)]) == 2
    assert "--output" in capsys.readouterr().err and Path(original).read_bytes() == before
    for limit in ("1", "2"):  # an older plan may go
        assert main(["plan", str(original), "--output", str(tmp_path / "plan.parquet"), "--limit", limit]) == 0
    assert len(pq.read_table(tmp_path / "plan.parquet")) == 2


# --- killed, interrupted, out of room ------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images in 3 groups: long enough to be killed in the middle. All have the same picture and masks."""
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
    return subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stdout=-1, stderr=-1, start_new_session=True)


def count(raw: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(raw))


def members_of_session(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def is_deaf_to_ctrl_c(process: int) -> bool:
    """A worker that hears it prints a traceback if it happens to be idle."""
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
        wait_until(lambda leader=process.pid: not members_of_session(leader))  # no worker lives on
        assert count(raw) < len(truth), "finished before it was killed: nothing was tested"
        there = {name: data for name, data in tree(raw).items() if not Path(name).name.startswith(".")}
        assert all(truth[name] == data for name, data in there.items())
        for name, status in kept.items():  # files of the first run are still the same files
            assert ((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) == status
        kept = {name: ((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) for name in there}
    (raw / "sa_000000/.sa_0.0123abcd.tmp.jpg").write_bytes(b"half")  # in case that no kill came while writing
    for path in raw.rglob(".*.tmp.*"):
        os.utime(path, (time.time() - 3600,) * 2)
    with start_extract(many, raw) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"600 of 600 images are in" in out
    assert tree(raw) == truth
    assert all(((raw / name).stat().st_ino, (raw / name).stat().st_mtime_ns) == kept[name] for name in kept)


def test_a_kill_in_the_middle_of_a_write_leaves_no_half_file(source: Path, tmp_path: Path):
    """The process dies when its fourth file is written and not yet on the disk."""
    script = f"""
import os, signal, sys
from pathlib import Path
from tests import test_sacap_tools as tools
calls, fsync = [], os.fsync
def dying(descriptor):
    calls.append(descriptor)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying
source = Path({str(source)!r})
tools.extract_tar(tools.job_of(source, source / "tars/sa_000000.tar", Path({str(tmp_path)!r})), tools.meter())
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY).returncode == -signal.SIGKILL
    truth, left = tree(source / "raw/sa_000000"), tree(tmp_path)
    assert {name: data for name, data in left.items() if name[0] != "."} == dict(sorted(truth.items())[:3])
    (half,) = (name for name in left if name[0] == ".")
    os.utime(tmp_path / half, (time.time() - 3600,) * 2)
    shutil.copytree(tmp_path, tmp_path / "raw/sa_000000")  # times included
    arguments = ["--tar_dir", str(source / "tars"), "--output", str(tmp_path / "raw"), "--groups", "0"]
    assert main(["extract", str(source / "annotations/anno_train.parquet"), *arguments]) == 0
    assert tree(tmp_path / "raw/sa_000000") == truth


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers of a process in /proc")
@pytest.mark.parametrize("moment", ["when workers start", "in the middle"])
def test_ctrl_c_ends_in_one_line(many: Path, tmp_path: Path, moment: str):
    with start_extract(many, tmp_path / "raw") as process:
        if moment == "in the middle":
            wait_until(lambda: count(tmp_path / "raw") >= 5)
            assert all(map(is_deaf_to_ctrl_c, set(members_of_session(process.pid)) - {process.pid}))
        else:
            wait_until(lambda: len(members_of_session(process.pid)) >= 3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err and b"start again to go on" in err.splitlines()[-1]
    assert not list((tmp_path / "raw").rglob(".*"))  # every write was finished


def test_files_that_are_there_are_not_read_again(source: Path, tmp_path: Path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(source / "raw", raw)
    (tmp_path / "tars").mkdir()  # no tar is needed any more
    annotations = str(source / "annotations/anno_train.parquet")
    assert main(["extract", annotations, "--tar_dir", str(tmp_path / "tars"), "--output", str(raw)]) == 0
    os.remove(raw / "sa_000001/sa_223757.json")
    report = tmp_path / "problems.tsv"
    arguments = ["--tar_dir", str(tmp_path / "tars"), "--output", str(raw), "--report", str(report)]
    assert main(["extract", annotations, *arguments]) == 1
    assert "8 of 9 images are in" in (out := capsys.readouterr().out) and "sa_000001.tar is not in" in out
    assert report.read_text().splitlines()[1].startswith("sa_000001\tsa_223757.jpg\tsa_223757.jpg\tmissing\t")


def test_a_disk_too_small_is_known_before_anything_is_written(source: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(extract_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=(1 << 28) + 9_000_000))
    arguments = [str(source / "annotations/anno_train.parquet"), "--tar_dir", str(source / "tars")]
    assert main(["extract", *arguments, "--output", str(tmp_path / "raw")]) == 2
    assert "9.36 MB are to be written, 9 MB are free" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_a_disk_that_fills_up_stops_the_run(source: Path, tmp_path: Path, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract_module, "atomic_write", full)
    with pytest.raises(UserError, match=r"sa_223750.jpg: cannot be written \(No space left on device\)"):
        extract_tar(job_of(source, source / "tars/sa_000000.tar", tmp_path), meter())


def test_a_dying_worker_ends_the_run(capsys):
    with pytest.raises(UserError, match="a worker process died"), progress_bar("two tasks", 2) as bar:
        list(run_tasks(die, [1, 2], 2, bar))


def die(task: int, meter: Meter) -> None:
    os._exit(9)


# --- tars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_is_found_where_tarfile_finds_it(tmp_path: Path, form: int):
    rng = np.random.default_rng(form)
    deep = "/".join(["a folder of a tar"] * (7 if form == tarfile.USTAR_FORMAT else 14))  # too long for a plain header
    members = [
        (f"{('.', deep, 'x/y')[i % 3]}/sa_{i}.jpg", rng.bytes(int(rng.integers(0, 3000)))) for i in range(40)
    ] + [("./sä_99.jpg", b"")]
    make_tar(tmp_path / "a.tar", members, format=form)
    index = index_tar(tmp_path / "a.tar", {Path(name).name for name, _ in members})
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = {Path(info.name).name: (info.offset_data, info.size) for info in tar}
    assert {name: (member.offset, member.size) for name, member in index.members.items()} == expected
    assert index.damage == ""


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [-1, -(1 << 40), 1 << 40])
def test_impossible_sizes_neither_hang_nor_swallow_the_tar(tmp_path: Path, kind: bytes, size: int):
    liar, good = tarfile.TarInfo("sa_1.jpg"), tarfile.TarInfo("sa_2.jpg")
    liar.size, liar.type = size, kind
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.write(liar.tobuf(tarfile.GNU_FORMAT) + good.tobuf())
    index = index_tar(path, {"sa_1.jpg", "sa_2.jpg"})
    assert set(index.members) == ({"sa_2.jpg"} if size < 0 else set())
    assert "cut off" in index.damage


def test_random_damage_never_leads_astray(source: Path, tmp_path: Path):
    rng, path = np.random.default_rng(5), tmp_path / "a.tar"
    whole = np.frombuffer((source / "tars/sa_000000.tar").read_bytes(), np.uint8)
    wanted = {member for member, _, _ in bounds(source / "tars/sa_000000.tar")}
    for _ in range(150):
        data = whole.copy()
        at, length = int(rng.integers(len(data))), int(2 ** rng.uniform(0, 12))
        data[at : at + length] = rng.integers(0, 256, len(data[at : at + length]))
        path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for name, member in index_tar(path, wanted).members.items():
            assert name in wanted and member.size >= 0 and member.offset + member.size <= path.stat().st_size


def bounds(tar: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(tar) as file:
        return [(Path(info.name).name, info.offset, info.offset_data + info.size) for info in file]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cut off in a member", lambda data, at: data[: at + 700]),
        ("cut off in a header", lambda data, at: data[: at + 100]),
        ("cut off between members", lambda data, at: data[:at]),
        ("a damaged header", lambda data, at: data[: at + 10] + b"\xff" * 20 + data[at + 30 :]),
        ("a hole over a header", lambda data, at: data[: at - 40] + bytes(1024) + data[at - 40 + 1024 :]),
        ("never written to its end", lambda data, at: data[:at] + bytes(3 << 20)),
    ],
)
def test_what_lies_around_damage_is_extracted(source: Path, tmp_path: Path, name: str, damage):
    original, tar = source / "tars/sa_000000.tar", tmp_path / "sa_000000.tar"
    members = bounds(original)
    hit = [member for member, _, _ in members].index("sa_223771.json")
    at = members[hit][1]
    broken = damage(original.read_bytes(), at)
    tar.write_bytes(broken)
    job = job_of(source, tar, tmp_path / "raw")
    problems = extract_tar(job, meter())

    truth = tree(source / "raw/sa_000000")
    intact = {  # of the wanted: every byte and the header are as they were
        member
        for member, start, end in members
        if member in truth and broken[start:end] == original.read_bytes()[start:end]
    }
    images = {Path(member).stem for member in intact if Path(member).with_suffix(".jpg").name in intact}
    expected = {member for member in intact if Path(member).stem in images}  # a json needs its jpg
    assert set(tree(tmp_path / "raw")) == expected and len(expected) >= 3, name
    assert all(truth[member] == data for member, data in tree(tmp_path / "raw").items())
    assert {problem.file for problem in problems} == {
        next(file for file in job.images.files(i) if file not in expected)
        for i in range(len(job.images))
        if not expected.issuperset(job.images.files(i))
    }
    assert all("download it again" in problem.reason for problem in problems if problem.missing)


def test_a_web_page_is_no_tar(source: Path, tmp_path: Path):
    (tmp_path / "sa_000000.tar").write_text("<!DOCTYPE html><title>link expired</title>" * 100)
    problems = extract_tar(job_of(source, tmp_path / "sa_000000.tar", tmp_path / "raw"), meter())
    assert len(problems) == 3 and "no tar archive (it begins with b'<!DOCTYPE html>" in problems[0].reason


@pytest.mark.parametrize("evil", ["../../{}", "/tmp/{}", "a/../../{}", "./../{}"])
def test_no_name_leads_out_of_the_target(source: Path, tmp_path: Path, evil: str):
    """Bad names come after the good ones, so they would win."""
    inner = tmp_path / "inner"
    inner.mkdir()
    good = files_of(source / "raw/sa_000000")
    bad = [(evil.format(Path(name).name), b"evil") for name, _ in good]
    make_tar(inner / "sa_000000.tar", [*good, *bad, ("../../outside.jpg", b"evil")])
    assert extract_tar(job_of(source, inner / "sa_000000.tar", inner / "raw"), meter()) == []
    assert tree(inner / "raw") == tree(source / "raw/sa_000000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner"]


def test_links_and_devices_in_tars_are_no_files(source: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"sa_{223750 + 21 * i}.jpg")
            info.type, info.linkname = kind, str(outside)
            tar.addfile(info)
    problems = extract_tar(job_of(source, tmp_path / "sa_000000.tar", tmp_path / "raw"), meter())
    assert len(problems) == 3 and all(problem.missing for problem in problems)
    assert not (tmp_path / "raw").exists() and outside.read_bytes() == b"untouched"


@pytest.mark.parametrize("column", ["imagename", "image_group"])
@pytest.mark.parametrize("name", ["../sa_1.jpg", "/etc/passwd", "a/b.jpg", "..", ".hidden.jpg", " a.jpg", "a\nb.jpg"])
def test_names_in_the_annotations_are_nothing_but_names(source: Path, tmp_path: Path, column: str, name: str):
    rows = pq.read_table(source / "annotations/anno_train.parquet").to_pylist()
    rows[3][column] = name
    write_sacap_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match=f"{column} of row 3 is .*; write a plain file name"):
        read_annotations(tmp_path / "a.parquet")


# --- files ---------------------------------------------------------------------------------------


def jpeg(size: tuple[int, int] = (60, 80), seed: int = 0, **arguments: bool) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).save(file, "JPEG", quality=95, **arguments)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_whole_jpegs_pass_and_damaged_ones_do_not(progressive: bool):
    data = jpeg((200, 300), progressive=progressive)
    assert check_jpeg(data) == (200, 300)
    middle = len(data) // 2
    damaged = {
        "empty": b"",
        "png": png(),
        "head only": data[:300],
        "half": data[:middle],
        "one byte short": data[:-1],
        "zeros at the end": data[:middle] + bytes(len(data) - middle),
        "inverted": data[:middle] + bytes(255 - byte for byte in data[middle:]),
        "a hole": data[:middle] + HOLE + data[middle + len(HOLE) :],
    }
    for name, broken in damaged.items():
        with pytest.raises(Broken):
            pytest.fail(f"{name}: {check_jpeg(broken)}")
    flat = io.BytesIO()
    Image.new("RGB", (1500, 1500), "white").save(flat, "JPEG", optimize=True)  # as many zeros as a picture can have
    assert check_jpeg(flat.getvalue()) == (1500, 1500)


def document() -> dict:
    """60 x 80 pixels; 4 columns of 60 pixels outside, then all inside."""
    segmentation = {"size": [60, 80], "counts": [240, 4560]}
    image = {"image_id": 1, "width": 80, "height": 60, "file_name": "sa_1.jpg"}
    return {"image": image, "annotations": [{"id": i, "segmentation": dict(segmentation)} for i in (7, 8, 9)]}


def changed(path: list, value: object) -> bytes:
    content = document()
    part = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return json.dumps(content).encode()


def test_whole_jsons_pass_and_damaged_ones_do_not():
    whole = json.dumps(document()).encode()
    check_json(whole, (60, 80), {7, 9})
    first = ["annotations", 0]
    check_json(changed([*first, "segmentation", "counts"], [1]), (60, 80), {8, 9})  # of nobody's interest
    damaged = {
        "no json": whole[:-5],
        "no text": b"\xff\xfe" * 50,
        "a list": b"[]",
        "deep": b"[" * 100_000,
        "other size": changed(["image", "width"], 60),
        "no image": changed(["image"], None),
        "no annotations": changed(["annotations"], []),
        "id gone": changed([*first, "id"], 70),
        "id twice": changed(["annotations", 1, "id"], 7),
        "counts too few": changed([*first, "segmentation", "counts"], [240, 4559]),
        "counts damaged": changed([*first, "segmentation", "counts"], "\x7f!"),
        "mask size turned": changed([*first, "segmentation", "size"], [80, 60]),
        "no run lengths": changed([*first, "segmentation"], None),
    }
    for name, broken in damaged.items():
        with pytest.raises(Broken):
            pytest.fail(f"{name}: {check_json(broken, (60, 80), {7, 9})}")
    with pytest.raises(Broken, match="the jpg has 81x60"):
        check_json(whole, (60, 81), {7})


def test_broken_members_are_named_and_never_written(source: Path, tmp_path: Path):
    members = dict(files_of(source / "raw/sa_000000"))
    names = sorted(members)
    members[names[0]] = members[names[0]][:-40]  # a jpg
    members[names[3]] = members[names[1]]  # a json of another image
    turned = json.loads(members[names[5]])  # a json that is whole, but about another picture
    image = turned["image"]
    assert image["width"] != image["height"]
    image["width"], image["height"] = image["height"], image["width"]
    for annotation in turned["annotations"]:
        annotation["segmentation"]["size"].reverse()
    members[names[5]] = json.dumps(turned).encode()
    make_tar(tmp_path / "sa_000000.tar", list(members.items()))
    problems = extract_tar(job_of(source, tmp_path / "sa_000000.tar", tmp_path / "raw"), meter())
    assert [problem.file for problem in problems] == [names[0][2:], names[3][2:], names[5][2:]]
    assert not any(problem.missing for problem in problems)
    assert "no whole JPEG" in problems[0].reason and "the jpg has" in problems[2].reason
    truth = tree(source / "raw/sa_000000")
    assert tree(tmp_path / "raw") == {name[2:]: truth[name[2:]] for name in (names[2], names[4])}


def test_verify_finds_repairs_and_lists_what_is_whole(source: Path, tmp_path: Path, capsys):
    raw, annotations = tmp_path / "raw", str(source / "annotations/anno_train.parquet")
    shutil.copytree(source / "raw", raw)
    truth = tree(raw)
    (raw / "sa_000000/sa_223750.jpg").write_bytes(truth["sa_000000/sa_223750.jpg"][:-30])
    (raw / "sa_000001/sa_223757.json").unlink()
    (raw / "sa_000002/sa_223764.json").write_bytes(truth["sa_000002/sa_223785.json"])
    report, whole = tmp_path / "problems.tsv", tmp_path / "whole.parquet"
    arguments = ["--root", str(raw), "--report", str(report), "--output", str(whole), "--delete_broken"]
    assert main(["verify", annotations, *arguments]) == 1
    assert "6 of 9 images are whole; 1 missing, 2 broken" in (out := capsys.readouterr().out)
    assert "removed 2 broken images" in out
    listed = [line.split("\t")[2:4] for line in report.read_text().splitlines()]
    assert listed[1:] == [["sa_223750.jpg", "broken"], ["sa_223757.json", "missing"], ["sa_223764.json", "broken"]]
    data = SACap1MDataset(str(whole), str(raw))
    assert len(data) == 6 and not data.left_out
    gone = {"sa_000000/sa_223750", "sa_000002/sa_223764"}
    expected = {name for name in truth if name.rpartition(".")[0] not in gone} - {"sa_000001/sa_223757.json"}
    assert set(tree(raw)) == expected
    assert main(["extract", annotations, "--tar_dir", str(source / "tars"), "--output", str(raw)]) == 0
    assert tree(raw) == truth


def test_images_without_groups_can_be_verified_only(tmp_path: Path, capsys):
    made = make_sacap_1m(tmp_path, n=2, groups=0)
    annotations = read_annotations(Path(made.params["seg_caption_path"]))
    images = annotations.images("", np.arange(2))
    assert verify_images(VerifyJob(Path(made.params["image_root"]), images), meter()) == []
    images = replace(images, ids=images.ids + 1_000_000)
    problems = verify_images(VerifyJob(Path(made.params["image_root"]), images), meter())
    assert len(problems) == 2 and "annotations, among them id" in problems[0].reason
    for command in (["plan", "--output", str(tmp_path / "p.parquet")], ["extract", "--tar_dir", str(tmp_path)]):
        assert main([command[0], made.params["seg_caption_path"], *command[1:]]) == 2
        assert "no column image_group" in capsys.readouterr().err


# --- choosing ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows in 12 groups of unequal size, in random order, with 1 to 5 masks."""
    path, rng = tmp_path_factory.mktemp("table") / "a.parquet", np.random.default_rng(3)
    rows = [
        {
            "imagename": f"sa_{i}.jpg",
            "image_group": f"sa_{min(rng.geometric(0.2), 12):06d}",
            "caption": "a street",
            "segments_info": [{"anno_id": 100 * i + k, "caption": "a car"} for k in range(rng.integers(1, 6))],
        }
        for i in range(200)
    ]
    write_sacap_parquet(path, rows)
    return path


def test_annotations_are_read_as_they_are(table: Path):
    annotations, rows = read_annotations(table), pq.read_table(table).to_pylist()
    assert sum(len(numbers) for _, numbers in annotations.by_group(np.ones(200, bool))) == 200
    for group, numbers in annotations.by_group(np.arange(200) % 3 == 0):
        images = annotations.images(group, numbers)
        for i, number in enumerate(numbers):
            assert number % 3 == 0 and rows[number]["image_group"] == group == images.group
            assert images.names[i] == rows[number]["imagename"]
            assert images.wanted(i) == {segment["anno_id"] for segment in rows[number]["segments_info"]}


@pytest.mark.parametrize("limit", [1, 17, 60, 150, 1000])
def test_a_limit_takes_the_fewest_tars_that_there_can_be(table: Path, limit: int):
    annotations = read_annotations(table)
    chosen = Subset(limit=limit).choose(annotations)
    assert chosen.sum() == min(limit, 200)
    counts = sorted(np.bincount(annotations.codes), reverse=True)
    fewest = next(n for n in range(1, 13) if sum(counts[:n]) >= chosen.sum())
    assert len(set(annotations.codes[chosen])) == fewest


def test_other_picks_groups_and_regions(table: Path):
    annotations = read_annotations(table)
    assert np.flatnonzero(Subset(limit=7, pick="first").choose(annotations)).tolist() == list(range(7))
    drawn = [Subset(limit=50, pick="random", seed=seed).choose(annotations) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any() and drawn[0].sum() == 50
    few = Subset(regions=(2, 3)).choose(annotations)
    assert (few == np.isin(annotations.regions, (2, 3))).all()
    names = np.array(annotations.groups)[annotations.codes]
    for text in ("2-4,sa_000007", "sa_000002-sa_000004,7", " 2-2, 3, 4,7,"):
        assert set(names[in_groups(annotations, text)]) == {f"sa_{n:06d}" for n in (2, 3, 4, 7)}
    present = Subset(groups="1-3").choose(annotations, {"sa_000002", "sa_000009"})
    assert set(names[present]) == {"sa_000002"}
    for text in ("40-50", "sb_000001x", "-"):
        with pytest.raises(UserError, match="--groups .*: no such group"):
            in_groups(annotations, text)
    with pytest.raises(UserError, match="no image fits"):
        Subset(regions=(9, 10)).choose(annotations)


@pytest.mark.parametrize("broken", ["missing file", "no parquet", "no segments", "no ids"])
def test_unusable_annotation_files_are_refused_in_one_line(source: Path, tmp_path: Path, broken: str, capsys):
    path = tmp_path / "a.parquet"
    whole = pq.read_table(source / "annotations/anno_train.parquet")
    if broken == "no parquet":
        path.write_bytes(b"PAR1" * 100)
    elif broken == "no segments":
        pq.write_table(whole.drop_columns(["segments_info"]), path)
    elif broken == "no ids":
        pq.write_table(whole.drop_columns(["segments_info"]).append_column("segments_info", [[[{"a": 1}]] * 9]), path)
    assert main(["verify", str(path), "--root", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sacap: {path}: ")


@pytest.mark.parametrize("command", ["plan", "extract", "verify"])
def test_help_has_examples_that_parse(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "Exit status" in text
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    examples = [line.split()[3:] for line in lines if line.startswith("python -m seg2any.data.sacap ")]
    assert len(examples) >= 3 and all(parse_options(example) for example in examples)
    assert {example[0] for example in examples} >= {command}
