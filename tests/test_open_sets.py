"""Masks out of photos with known labels: synthetic copies of five sets, through eval.sh and in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seg2any.evaluation import segmentation
from seg2any.evaluation.labels.open_sets import OPEN_SETS
from seg2any.evaluation.segmentation import confusion_of
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY

RNG = np.random.default_rng(0)
SIZE = (48, 64)
# Names of two pictures, inside each set's folders.
PICTURES = {
    "cityscapes": ("bern/bern_000001_000019", "ulm/ulm_000002_000019"),
    "coco_object": ("000000000139", "000000000285"),
}


def make_set(name: str, folder: Path) -> None:
    """Write two photos with label maps that hold the first, the second and the last class, background and void."""
    chosen = OPEN_SETS[name]
    for picture in PICTURES.get(name, ("2007_000033", "2007_000042")):
        path = folder / chosen.labels.replace("*/*", picture, 1).replace("*", picture, 1)
        labels = np.full(SIZE, chosen.first, np.uint8)
        labels[:, 20:40], labels[30:, 40:] = chosen.first + 1, chosen.first + len(chosen.names) - 1
        labels[:4], labels[4:8] = 255, 0 if chosen.first else 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        inside = str(path.relative_to(folder))
        for old, new in chosen.photo:
            inside = inside.replace(old, new)
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / inside)
    if chosen.listing:
        (folder / chosen.listing).parent.mkdir(parents=True, exist_ok=True)
        (folder / chosen.listing).write_text("2007_000042\n2007_000033\n")


@pytest.mark.parametrize("name", OPEN_SETS)
def test_a_set_is_found_and_its_labels_are_counted_from_the_first_class(name: str, tmp_path: Path):
    make_set(name, tmp_path)
    chosen, count = OPEN_SETS[name], len(OPEN_SETS[name].names)
    pairs = chosen.pairs(tmp_path)
    assert len(pairs) == 2 and pairs == sorted(pairs) and len({*chosen.names}) == count
    labels = chosen.read(pairs[0][1])
    background = {count} if chosen.first else set()
    assert {*np.unique(labels).tolist()} == {0, 1, count - 1, 255} | background
    assert labels[47, 63] == count - 1 and labels[10, 0] == 0 and labels[0, 0] == 255


def test_other_folders_and_other_labels_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="val.txt: is missing; --data names the set's folder"):
        OPEN_SETS["voc20"].pairs(tmp_path)
    with pytest.raises(UserError, match="has no annotations/validation"):
        OPEN_SETS["ade150"].pairs(tmp_path)
    make_set("voc20", tmp_path)
    (tmp_path / "JPEGImages" / "2007_000033.jpg").unlink()
    with pytest.raises(UserError, match="the photo of 2007_000033.png; unpack"):
        OPEN_SETS["voc20"].pairs(tmp_path)
    Image.fromarray(np.full(SIZE, 90, np.uint8)).save(tmp_path / "other.png")
    with pytest.raises(UserError, match="other.png: holds label 90, but the set has 1 to 20"):
        OPEN_SETS["voc20"].read(tmp_path / "other.png")


class Painter:
    """A segmenter that paints the truth, or the truth with the first class in place of the second."""

    def __init__(self, labels: np.ndarray, names: tuple[str, ...], wrong: bool = False):
        self.labels, self.names, self.wrong = np.where(wrong & (labels == 1), 0, labels), names, wrong

    def segment(self, image, prompt) -> Layout:
        self.asked = prompt.categories
        numbers = [self.names.index(name) for name in prompt.categories or ()]
        if prompt.categories is None:
            numbers = sorted({*np.unique(self.labels).tolist()} - {255}, reverse=True)
        masks = np.stack([self.labels == number for number in numbers])
        return Layout(masks, tuple(f"{number}" for number in numbers), overlap="share")


def test_pixels_are_counted_by_class_without_background_and_void():
    names = ("sky", "sea", "sand")
    labels = np.zeros((4, 10), np.uint8)
    labels[:, 5:8], labels[:, 8], labels[:, 9] = 1, 3, 255  # 20 of sky, 12 of sea, 4 background, 4 void; no sand
    image, photo = np.zeros((4, 10, 3), np.uint8), Painter(labels, names)
    assert confusion_of(photo, image, labels, names, "present").tolist() == [[20, 0, 0, 0], [0, 12, 0, 0], [0] * 4]
    assert photo.asked == ("sky", "sea")
    confusion_of(photo, image, labels, names, "all")
    assert photo.asked == names
    wrong = Painter(labels, names, wrong=True)
    assert confusion_of(wrong, image, labels, names, "present").tolist() == [[20, 0, 0, 0], [12, 0, 0, 0], [0] * 4]
    unnamed = confusion_of(photo, image, labels, names, "none")
    assert unnamed.diagonal().tolist() == [20, 12, 0, 4] and unnamed.sum() == 36
    missed = confusion_of(wrong, image, labels, names, "none")  # sky and sea are one region: sea is not found
    assert missed.diagonal().tolist() == [20, 0, 0, 4] and missed[1].tolist() == [12, 0, 0, 0, 0]
    assert confusion_of(photo, image, np.full((4, 10), 3, np.uint8), names, "all") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPEN_SETS)
def test_a_set_is_measured_through_eval_sh_with_a_tiny_model(name: str, tmp_path: Path, pipe, monkeypatch, capsys):
    """Let the shell print the command instead of starting it, and run that in this process."""
    from seg2any.evaluation.shapes import sources

    opened = []
    monkeypatch.setattr(
        sources, "open_session", lambda *given: opened.append(given) or (SimpleNamespace(pipeline=pipe), {})
    )
    make_set(name, tmp_path / "data")
    own = {"PYTHON": shutil.which("echo"), "MODEL": "examples/shapes/model", "OUT": tmp_path}
    environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
    words = [name, "--classes", "present", "all", "none", "--blocks", "0", "3", "--side", "32", "--text_tokens", "64"]
    words += ["--device", "cpu", "--limit", "1"]
    call = ["bash", str(REPOSITORY / "eval.sh"), *words]
    lacking = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert lacking.returncode == 2 and "DATA is not set" in lacking.stderr
    environment["DATA"] = str(tmp_path / "data")
    module, *printed = subprocess.run(call, env=environment, capture_output=True, text=True).stdout.split()[1:]
    assert module == segmentation.PROGRAM and segmentation.main(printed) == 0, capsys.readouterr().err
    numbers, told = json.loads((tmp_path / f"{name}.json").read_text()), capsys.readouterr().out
    assert all(0 <= numbers[way]["mIoU"] <= 1 and numbers[way]["photos"] == 1 for way in ("present", "all", "none"))
    assert f"{name} present  mIoU" in told and "published for FLUX.1-dev, not measured here" in told
    assert len(opened) == 1 and opened[0][0].endswith("examples/shapes/model")
