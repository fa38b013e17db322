"""`annotate`: planted violations, killed and changed runs, sources of masks, and training on what comes out."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seg2any.annotate.output import RAW, TABLE
from seg2any.annotate.run import JOURNAL, LEFT_OUT
from seg2any.commands import verbs
from seg2any.data.sacap.__main__ import main as sacap
from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.data.shapes import ShapesDataset
from tests import annotate_set
from tests.annotate_set import GOOD, HALF_NESTED, LARGE_ENOUGH, LEAST
from tests.golden_root import REPOSITORY
from tests.sessions import wait_until
from tests.synthetic_data import write_sa1b_json


def words(photos: Path, root: Path, *more: str) -> list[str]:
    captions = photos.parent / "captions.jsonl"
    known = ["--captions", "file", "--caption_file", str(captions)]
    return ["annotate", str(photos), "--output", str(root), *known, *LEAST, "--workers", "1", *more]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "photos"
    annotate_set.plant(folder)
    annotate_set.write_captions(folder.parent / "captions.jsonl", folder)
    return folder


def left_out(root: Path) -> dict[str, tuple[str, str]]:
    rows = [line.split("\t") for line in (root / LEFT_OUT).read_text().splitlines()[1:]]
    return {key: (state, by) for key, state, by, _ in rows}


def outcomes(root: Path) -> list[str]:
    return [json.loads(line)["outcome"]["key"] for line in finished(root)]


def test_planted_violations_are_dropped_and_everything_else_is_kept(photos, tmp_path, capsys):
    assert verbs.main(words(photos, tmp_path / "set")) == 1  # three files cannot be used
    told = capsys.readouterr()
    assert "no photo is scored" in told.out.splitlines()[0]
    said = told.err
    assert "3 photos failed" in said and "no_json.json: cannot be opened" in said and "Traceback" not in said
    assert left_out(tmp_path / "set") == annotate_set.plant(tmp_path / "again")
    data = SACap1MDataset(tmp_path / "set" / TABLE, tmp_path / "set" / RAW)
    expected = {f"good_{number}": GOOD for number in range(4)}
    expected |= {"masks_20": annotate_set.stripes(20), "nested": (GOOD[0], HALF_NESTED, LARGE_ENOUGH)}
    assert [data.key(number) for number in range(len(data))] == [*expected] and not data.left_out
    for number, (name, masks) in enumerate(expected.items()):
        image, layout = data[number].image, data[number].layout
        assert (layout.masks == np.stack(masks)).all() and layout.caption == f"the photo {name}"
        assert (image == np.asarray(Image.open(photos / f"{name}.jpg"))).all()
    assert data[5].layout.captions == tuple(f"mask {number} of nested" for number in (101, 103, 105))
    raw = ["--root", str(tmp_path / "set" / RAW), "--workers", "1"]
    assert sacap(["verify", str(tmp_path / "set" / TABLE), *raw]) == 0
    sources = {*pq.read_table(tmp_path / "set" / TABLE)["source"].to_pylist()}
    document = json.loads((tmp_path / "set" / RAW / "photos" / "nested.json").read_text())
    assert sources == {document["image"]["source"]} == {"masks: SA-1B; captions: captions.jsonl"}
    card = (tmp_path / "set" / "card.md").read_text()
    assert "6 photos of 16: 7 dropped by rules, 3 failed." in card and "| min_masks | 1 | 2 |" in card
    assert "| masks a photo | 5.83 |" in card and "not applied: no predictor" in card
    for name in ("histograms.png", "contact_sheet.png"):
        assert len(Image.open(tmp_path / "set" / name).getcolors(2**20)) > 5


def test_a_run_goes_on_where_it_stopped_and_refuses_other_rules(photos, tmp_path, capsys):
    root = tmp_path / "set"
    assert verbs.main(words(photos, root)) == 1
    before, table = outcomes(root), (root / TABLE).read_bytes()
    (root / RAW / "photos" / "good_1.jpg").unlink()
    assert verbs.main(words(photos, root)) == 1
    assert outcomes(root) == [*before, "good_1.jpg"] and (root / TABLE).read_bytes() == table
    capsys.readouterr()
    assert verbs.main(words(photos, root, "--min_area", "0.02")) == 2
    assert "was made with min_area 0.01, and now it is 0.02" in capsys.readouterr().err
    assert verbs.main(words(photos, root, "--min_area", "0.011", "--overwrite")) == 1
    assert [row["anno_id"] for row in pq.read_table(root / TABLE)["segments_info"].to_pylist()[5]] == [101, 103]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert verbs.main(words(photos, tmp_path / "mine", "--overwrite")) == 2
    assert "no run has written this folder" in capsys.readouterr().err and (tmp_path / "mine" / "thesis.txt").exists()


def test_photos_are_written_as_people_see_them_and_links_are_the_same_file(tmp_path):
    folder = tmp_path / "photos"
    annotate_set.write_pair(folder, "plain", 0, GOOD)
    annotate_set.write_pair(folder, "turned", 1, (annotate_set.rectangle(0, 0, 100, 100, (320, 240)),))
    image, exif = Image.open(folder / "turned.jpg"), Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "plain.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        folder / "turned.jpg", exif=exif, quality=95
    )
    assert image.size == (240, 320)
    Image.open(folder / "plain.jpg").rotate(90, expand=True).convert("RGBA").save(folder / "clear.png")
    write_sa1b_json(folder / "clear.json", "clear_1", np.ones((1, 320, 240), bool), [4])
    annotate_set.write_captions(tmp_path / "captions.jsonl", folder)
    line = json.dumps({"image": "clear.png", "regions": {"4": "all of it"}})
    with open(tmp_path / "captions.jsonl", "a") as file:
        file.write(line + "\n")
    assert verbs.main(words(folder, tmp_path / "set", "--photos", "link", "--hash_distance", "-1")) == 0
    raw = tmp_path / "set" / RAW / "photos"
    assert os.path.samefile(raw / "plain.jpg", folder / "plain.jpg")
    data = SACap1MDataset(tmp_path / "set" / TABLE, tmp_path / "set" / RAW)
    for number in range(3):
        assert data[number].image.shape[:2] == data[number].layout.size
    seen = np.asarray(Image.open(folder / "turned.jpg").transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(data[2].image - seen).mean() < 2 and not os.path.samefile(raw / "turned.jpg", folder / "turned.jpg")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--captions", "endpoint"], "--captions endpoint: --endpoint is missing"),
        (["--captions", "phrases"], "--captions phrases: the masks of --masks sa1b have no names"),
        (["--captions", "local", "--endpoint", "http://x"], "--endpoint: --captions local does not read it"),
        (["--captions", "file", "--min_masks", "5", "--max_masks", "4"], "--captions file: --caption_file is missing"),
        (["--captions", "file", "--caption_file", "x.jsonl"], "x.jsonl: no such file"),
        (["--captions", "file", "--caption_file", "x", "--", "--phrases", "a"], "takes no flags of segment"),
        (["--mask", "sam"], "did you mean --masks?"),
        (["--masks", "sam", "--captions", "phrases", "--", "--phrases", "a"], "finds regions by itself"),
    ],
)
def test_flags_that_contradict_each_other_are_one_line(photos, tmp_path, capsys, more, said):
    try:
        status = verbs.main(["annotate", str(photos), "--output", str(tmp_path / "set"), *LEAST, *more])
    except SystemExit as end:
        status = end.code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and said in line and line.startswith("seg2any annotate: "), line


HALTING = """
import signal, sys
from seg2any.annotate.journal import Journal
from seg2any.commands import verbs
add = Journal.add
def add_and_halt(journal, outcome):
    add(journal, outcome)
    if outcome.key == "good_30.jpg":
        signal.pause()
Journal.add = add_and_halt
sys.exit(verbs.main(sys.argv[1:]))
"""  # no run is over before it is killed, however late that is


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_loses_and_doubles_no_record(tmp_path):
    photos, root = tmp_path / "photos", tmp_path / "set"
    for number in range(36):
        annotate_set.write_pair(photos, f"good_{number:02}", number, GOOD)
    annotate_set.write_captions(tmp_path / "captions.jsonl", photos)
    command = [sys.executable, "-c", HALTING, *words(photos, root)]
    for goal in (5, 20):
        with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            wait_until(lambda goal=goal: (root / JOURNAL).exists() and len(finished(root)) >= goal)
            process.kill()
        assert process.returncode == -signal.SIGKILL and len(finished(root)) < 36 and not (root / TABLE).exists()
    half = root / RAW / "photos" / ".good_00.0123abcd.tmp.jpg"
    half.write_bytes(b"half")  # in case that no kill hit a write
    for left in half.parent.glob(".*.tmp*"):  # a kill that hits a write leaves one too, and seconds ago
        os.utime(left, (time.time() - 3600,) * 2)
    assert verbs.main(words(photos, root)) == 0
    assert sorted(outcomes(root)) == [f"good_{number:02}.jpg" for number in range(36)]
    assert verbs.main(words(photos, tmp_path / "whole")) == 0
    assert (root / TABLE).read_bytes() == (tmp_path / "whole" / TABLE).read_bytes() and not half.exists()
    raw = [
        {path.name: path.read_bytes() for path in (one / RAW / "photos").iterdir()}
        for one in (root, tmp_path / "whole")
    ]
    assert raw[0] == raw[1]


def finished(root: Path) -> list[str]:
    return re.findall(r'^\{"outcome".*\}$', (root / JOURNAL).read_text(), re.MULTILINE)


@pytest.mark.slow
def test_what_comes_out_trains_and_makes_an_image(tiny_model, tmp_path, capsys):
    from seg2any.commands import generate
    from seg2any.generate.options import parse_options
    from tests import tiny_run

    scenes, photos, lines = ShapesDataset(n_scenes=4, size=96), tmp_path / "photos", []
    for number in range(4):
        sample, name = scenes[number], f"scene_{number}"
        photos.mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(photos / f"{name}.png")
        write_sa1b_json(photos / f"{name}.json", name, sample.layout.masks, range(1, len(sample.layout.masks) + 1))
        regions = {str(region): text for region, text in enumerate(sample.layout.captions, 1)}
        lines.append(json.dumps({"image": f"{name}.png", "caption": sample.layout.caption, "regions": regions}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    assert verbs.main([*words(photos, tmp_path / "set", "--min_side", "96")]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    data = [word for word in shlex.split(printed) if word.startswith("--data")]
    run = [one for one in tiny_run.arguments(tiny_model, tmp_path) if not one.startswith("--data.train.params")]
    short = ["--trainer.max_train_steps=1", "--model.num_inference_steps=1"]
    tiny_run.fit([*run, "--data.train.type=sacap_1m", *data, *short])
    program = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    generate.run(parse_options([*program[2:], "--device", "cpu"]))
    (image,) = (tmp_path / "run" / "images").glob("*.png")
    assert Image.open(image).size == (64, 64)
