"""Converters of label maps for the judges: values against a table by hand, and whole files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.evaluation.labels import convert_coco_stuff164k, convert_labelsize_512
from seg2any.evaluation.labels.label_maps import ClassTable, squashed
from tests.golden_root import REPOSITORY

# Values of 0..181 that COCO-Stuff never uses (COCO's ids 12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91).
UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
USED = [value for value in range(182) if value not in UNUSED]


def brute_force(labels: np.ndarray) -> np.ndarray:
    """Count the ids in use that are smaller, for each pixel alone."""
    return np.array(
        [[255 if v == 255 else sum(used < v for used in USED) for v in row] for row in labels.tolist()], np.uint8
    )


def write(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (("train2017", 3), ("val2017", 4)):
        for i in range(n):
            labels = rng.choice(np.array([*USED, 255], np.uint8), (13 + i, 17))
            write(tmp_path / "stuffthingmaps" / split / f"{i:012d}.png", labels)
    return tmp_path


def read(path: Path) -> np.ndarray:
    image = Image.open(path)
    assert image.mode == "L"
    return np.asarray(image)


def test_coco_ids_become_their_rank_among_those_in_use(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert convert_coco_stuff164k.main([str(coco), "-o", str(tmp_path / "out"), "--nproc", "2"]) == 0
    assert "7 label maps converted, 0 were there" in capsys.readouterr().out
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert len(written) == 7
    for source in coco.rglob("stuffthingmaps/*/*.png"):
        target = tmp_path / "out" / "annotations" / source.parent.name / f"{source.stem}_labelTrainIds.png"
        assert (read(target) == brute_force(read(source))).all()


def test_the_table_has_every_class_once():
    coco, ade = ClassTable.of("coco_stuff"), ClassTable.of("ade20k")
    assert [coco.classes[value] for value in USED] == list(range(171)) and len(coco.names) == 171
    assert all(coco.classes[value] == -1 for value in [*UNUSED, *range(182, 255)]) and coco.classes[255] == 255
    assert list(ade.classes[:151]) == [255, *range(150)] and (ade.classes[151:] == -1).all()
    assert ade.names[:2] == ("wall", "building edifice") and coco.names[11] == "stop sign"  # the first after a gap


@pytest.mark.parametrize("value", [11, 182, 254])
def test_an_unknown_id_is_reported_with_its_file_and_nothing_is_written(
    coco: Path, value: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = coco / "stuffthingmaps" / "val2017" / "000000000002.png"
    labels = read(path).copy()
    labels[3, 4] = value
    write(path, labels)
    assert convert_coco_stuff164k.main([str(coco), "-o", str(tmp_path / "out"), "--nproc", "1"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in told and f" id {value}," in told
    assert not list((tmp_path / "out").rglob("*/val2017/000000000002*"))
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_second_run_converts_only_missing_broken_or_outdated_maps(coco: Path, capsys: pytest.CaptureFixture):
    assert convert_coco_stuff164k.main([str(coco), "--nproc", "1"]) == 0
    folder = coco / "annotations" / "val2017"
    first, second, third, _ = sorted(folder.iterdir())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    source = coco / "stuffthingmaps" / "val2017" / third.name.replace("_labelTrainIds", "")
    os.utime(source, ns=(third.stat().st_mtime_ns + 10**10,) * 2)
    capsys.readouterr()
    assert convert_coco_stuff164k.main([str(coco), "--nproc", "1"]) == 0
    assert "3 label maps converted, 4 were there already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.iterdir()} == {path: old for path, (old, _) in before.items()}


def test_labels_are_squashed_to_the_nearest_pixel(tmp_path: Path):
    rng = np.random.default_rng(1)
    for size in ((480, 640), (1, 1), (513, 200), (2000, 3)):
        labels = rng.integers(0, 151, size, dtype=np.uint8)
        found = squashed(labels, (512, 512))
        rows, columns = (np.floor((np.arange(512) + 0.5) * edge / 512).astype(int) for edge in size)
        assert (found == labels[rows][:, columns]).all()


def test_the_size_converter_keeps_values_and_names(tmp_path: Path, capsys: pytest.CaptureFixture):
    labels = np.random.default_rng(2).integers(0, 151, (30, 50), dtype=np.uint8)
    write(tmp_path / "in" / "ADE_val_00000001.png", labels)
    flags = ["--input_path", str(tmp_path / "in"), "--output_path", str(tmp_path / "out"), "--nproc", "1"]
    assert convert_labelsize_512.main([*flags, "--data_set", "ade20k"]) == 0
    found = read(tmp_path / "out" / "ADE_val_00000001.png")
    rows, columns = (np.floor((np.arange(512) + 0.5) * edge / 512).astype(int) for edge in labels.shape)
    assert (found == labels[rows][:, columns]).all()
    assert convert_labelsize_512.main([*flags, "--size", "8"]) == 0  # the existing files have another size
    assert read(tmp_path / "out" / "ADE_val_00000001.png").shape == (8, 8)
    labels[0, 0] = 151
    write(tmp_path / "in" / "ADE_val_00000002.png", labels)
    assert convert_labelsize_512.main([*flags, "--data_set", "ade20k"]) == 2
    assert " id 151," in capsys.readouterr().err
    assert convert_labelsize_512.main([*flags[:3], str(tmp_path / "in")]) == 2
    assert "--output_path" in capsys.readouterr().err


def test_killed_and_started_again_the_folder_is_the_same(tmp_path: Path):
    rng = np.random.default_rng(3)
    for i in range(60):
        write(tmp_path / "in" / f"{i:03d}.png", rng.integers(0, 150, (40, 40), dtype=np.uint8))

    def command(out: str) -> list[str]:
        paths = ["--input_path", str(tmp_path / "in"), "--output_path", str(tmp_path / out)]
        return [
            sys.executable,
            "-m",
            "seg2any.evaluation.labels.convert_labelsize_512",
            *paths,
            "--nproc",
            "1",
            "--size",
            "700",
        ]

    process = subprocess.Popen(command("out"), cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("[!.]*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert 0 < len(list((tmp_path / "out").glob("[!.]*"))) < 60, "the kill came too late to interrupt anything"
    for out in ("out", "undisturbed"):
        assert subprocess.run(command(out), cwd=REPOSITORY, stderr=subprocess.DEVNULL, timeout=120).returncode == 0
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / out).glob("[!.]*")} for out in ("out", "undisturbed")
    )
    assert found == expected and len(found) == 60


def test_a_folder_without_label_maps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert convert_coco_stuff164k.main([str(tmp_path)]) == 2
    assert "train2017 or val2017" in capsys.readouterr().err
    (tmp_path / "stuffthingmaps" / "val2017").mkdir(parents=True)
    assert convert_coco_stuff164k.main([str(tmp_path)]) == 2
    assert "val2017: " in capsys.readouterr().err


@pytest.mark.parametrize("published", [True, False], ids=["as a file", "as a module"])
def test_a_converter_starts_as_script_and_as_module(published: bool, tmp_path: Path):
    write(tmp_path / "in" / "a.png", np.full((3, 4), 7, np.uint8))
    name = "eval/convert_labelsize_512.py" if published else "seg2any.evaluation.labels.convert_labelsize_512"
    flags = ["--input_path", tmp_path / "in", "--output_path", tmp_path / "out", "--size", "8", "--nproc", "2"]
    where = tmp_path if published else REPOSITORY  # the script has to work from any folder
    command = [sys.executable, *([REPOSITORY / name] if published else ["-m", name]), *flags]
    done = subprocess.run(list(map(str, command)), cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (read(tmp_path / "out" / "a.png") == 7).all() and "1 label maps converted" in done.stdout


def test_one_process_and_several_write_the_same_files_no_larger_than_pillow_does(tmp_path: Path):
    """Maps of a few large regions with single wrong pixels, as annotators leave them."""
    rng = np.random.default_rng(4)
    theirs = 0
    for i in range(6):
        labels = np.kron(rng.integers(0, 150, (6, 8)), np.ones((90, 70))).astype(np.uint8)
        labels[tuple(rng.integers(0, 500, (2, 99)))] = 0
        write(tmp_path / "in" / f"{i}.png", labels)
        published = Image.fromarray(labels).resize((512, 512), Image.Resampling.NEAREST)
        published.save(tmp_path / "published.png")
        theirs += (tmp_path / "published.png").stat().st_size
    for processes in ("1", "2"):
        paths = ["--input_path", str(tmp_path / "in"), "--output_path", str(tmp_path / processes)]
        assert convert_labelsize_512.main([*paths, "--nproc", processes]) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("1", "2"))
    assert one == two and sum(map(len, one.values())) <= theirs
    for path in (tmp_path / "in").iterdir():
        expected = Image.open(path).resize((512, 512), Image.Resampling.NEAREST)
        assert (read(tmp_path / "1" / path.name) == np.asarray(expected)).all()


def test_stretching_maps_loads_neither_arrow_nor_opencv_nor_torch():
    code = (
        "import sys, seg2any.evaluation.labels.convert_labelsize_512 as command; print('numpy' in sys.modules);"
        "import seg2any.evaluation.labels.label_maps; print({'pyarrow', 'cv2', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["False", "set()"], done.stderr
