"""The SACap-1M tools: plan, extract, verify and train on a subset of SA-1B's tars."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seg2any.data.sacap.__main__ import main
from seg2any.data.sacap.options import parse_options
from seg2any.data.sacap.subset import Subset, in_groups
from seg2any.data.sacap.table import read_annotations
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY
from tests.sacap_tars import COMMAND, make_source, tree
from tests.synthetic_data import SACAP_SCHEMA, write_sacap_parquet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("sa1b"))


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
    annotations = read_annotations(plan)  # a plan can be read as an annotation file
    assert len(annotations) == 6 and annotations.bytes(np.arange(6)) < 6 * 20_000


def test_a_plan_lists_missing_tars_and_where_to_get_them(source: Path, tmp_path: Path, capsys):
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
    assert "sa_000000.tar: it lacks" in out and "cut off at byte 12000" in out
    assert "1 tars have no link" in out and "sa_000002.tar" in out
    assert (tmp_path / "plan.links.txt").read_text() == "file_name\tcdn_link\nsa_000001.tar\thttps://x/1\n"


def test_a_plan_does_not_overwrite_an_annotation_file(source: Path, tmp_path: Path, capsys):
    original = shutil.copy(source / "annotations/anno_train.parquet", tmp_path / "a.parquet")
    before = Path(original).read_bytes()
    assert main(["plan", str(original), "--output", str(original)]) == 2
    assert "--output" in capsys.readouterr().err and Path(original).read_bytes() == before
    for limit in ("1", "2"):  # an older plan may be overwritten
        assert main(["plan", str(original), "--output", str(tmp_path / "plan.parquet"), "--limit", limit]) == 0
    assert len(pq.read_table(tmp_path / "plan.parquet")) == 2


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 200 rows in 12 groups of unequal size, in random order, with 1 to 5 masks."""
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


def test_annotations_by_group_equal_the_rows_of_the_table(table: Path):
    annotations, rows = read_annotations(table), pq.read_table(table).to_pylist()
    assert sum(len(numbers) for _, numbers in annotations.by_group(np.ones(200, bool))) == 200
    for group, numbers in annotations.by_group(np.arange(200) % 3 == 0):
        images = annotations.images(group, numbers)
        for i, number in enumerate(numbers):
            assert number % 3 == 0 and rows[number]["image_group"] == group == images.group
            assert images.names[i] == rows[number]["imagename"]
            assert images.wanted(i) == {segment["anno_id"] for segment in rows[number]["segments_info"]}


@pytest.mark.parametrize("limit", [1, 17, 60, 150, 1000])
def test_a_limit_takes_the_fewest_possible_tars(table: Path, limit: int):
    annotations = read_annotations(table)
    chosen = Subset(limit=limit).choose(annotations)
    assert chosen.sum() == min(limit, 200)
    counts = sorted(np.bincount(annotations.codes), reverse=True)
    fewest = next(n for n in range(1, 13) if sum(counts[:n]) >= chosen.sum())
    assert len(set(annotations.codes[chosen])) == fewest


def test_a_subset_is_chosen_by_pick_groups_and_regions(table: Path):
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


def test_a_table_whose_rows_cannot_be_picked_is_one_line(source: Path, tmp_path: Path, capsys):
    """Use string views, which some writers prefer.

    Older versions of Arrow cannot select rows of them.
    """
    path, plan = tmp_path / "views.parquet", tmp_path / "plan.parquet"
    whole = pq.read_table(source / "annotations/anno_train.parquet")
    pq.write_table(whole.append_column("note", pa.array(["x"] * len(whole), pa.string_view())), path)
    status = main(["plan", str(path), "--output", str(plan)])
    if status == 0:  # newer versions of Arrow can
        assert pq.read_table(plan).num_rows == len(whole)
        return
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith(f"sacap: {path}: its rows cannot be copied") and not plan.exists()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_plan_that_cannot_be_written_is_one_line(source: Path, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    table, plan = source / "annotations/anno_train.parquet", tmp_path / "file" / "plan.parquet"
    assert main(["plan", str(table), "--output", str(plan)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sacap: {plan}: cannot be written ('File exists'")


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
