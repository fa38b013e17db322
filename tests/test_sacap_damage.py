"""Damaged and hostile tars and files: intact members are extracted, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.data.sacap.__main__ import main
from seg2any.data.sacap.extract import extract_tar
from seg2any.data.sacap.table import read_annotations
from seg2any.data.sacap.tars import index_tar
from seg2any.data.sacap.verify import HOLE, Broken, check_jpeg, check_json, verify_images
from seg2any.data.sacap.verify import Job as VerifyJob
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.system.errors import UserError
from tests.sacap_tars import files_of, job_of, make_source, make_tar, meter, tree
from tests.synthetic_data import make_sacap_1m, write_sacap_parquet


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("sa1b"))


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
    intact = {  # wanted members whose header and bytes are all unchanged
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


def test_a_web_page_is_refused_as_a_tar(source: Path, tmp_path: Path):
    (tmp_path / "sa_000000.tar").write_text("<!DOCTYPE html><title>link expired</title>" * 100)
    problems = extract_tar(job_of(source, tmp_path / "sa_000000.tar", tmp_path / "raw"), meter())
    assert len(problems) == 3 and "not a tar archive (it begins with b'<!DOCTYPE html>" in problems[0].reason


@pytest.mark.parametrize("evil", ["../../{}", "/tmp/{}", "a/../../{}", "./../{}"])
def test_no_name_leads_out_of_the_target(source: Path, tmp_path: Path, evil: str):
    """Put the bad names after the good ones, so that they would overwrite them."""
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
def test_names_in_the_annotations_cannot_be_paths(source: Path, tmp_path: Path, column: str, name: str):
    rows = pq.read_table(source / "annotations/anno_train.parquet").to_pylist()
    rows[3][column] = name
    write_sacap_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match=f"{column} of row 3 is .*; write a plain file name"):
        read_annotations(tmp_path / "a.parquet")


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
    Image.new("RGB", (1500, 1500), "white").save(flat, "JPEG", optimize=True)  # the most zero bytes possible
    assert check_jpeg(flat.getvalue()) == (1500, 1500)


def document() -> dict:
    """Return a json of 60 x 80 pixels; 4 columns of 60 pixels outside, then all inside."""
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
    check_json(changed([*first, "segmentation", "counts"], [1]), (60, 80), {8, 9})  # a field that no reader uses
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
    turned = json.loads(members[names[5]])  # an intact json that describes another picture
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
    assert "cannot be read as an image" in problems[0].reason and "the jpg has" in problems[2].reason
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
        assert "image_group" in capsys.readouterr().err
