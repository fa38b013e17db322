"""Closing the loop: regions asked for again, images made of layouts and photos, and one page about them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seg2any.commands import cycle, cycle_folder, segment_methods
from seg2any.commands.segment_methods import NOTHING, Method
from seg2any.evaluation.cycle.again import WAYS, by_points, deepest, find_again
from seg2any.generate.session import Session
from seg2any.layout import Layout
from seg2any.segment.segmenter import Prompt
from seg2any.segment.watershed import WatershedSegmenter
from tests.test_coloring import COLORS, iou, planted

NAMES = ("a disc", "a <b>ring</b>", "a bar")


def known() -> Layout:
    return Layout(np.array([planted() == n for n in (1, 2, 3)]), NAMES, "three figures", overlap="share")


class Truth:
    """Knows the planted regions, whatever the image; `shift` spoils them."""

    def __init__(self, shift: int = 0):
        self.shift, self.prompts = shift, []

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        self.prompts.append(prompt)
        masks = np.roll(known().masks, self.shift, 2)
        names = prompt.phrases or NAMES
        return Layout(
            np.array([masks[NAMES.index(n)] for n in names]), names, scores=np.ones(len(names)), overlap="share"
        )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_asks_for_every_region_in_order(way: str):
    again = find_again(np.zeros((60, 80, 3), np.uint8), WAYS[way](known()), Truth())
    assert again.iou.tolist() == [1, 1, 1] and again.question.captions == NAMES
    spoilt = find_again(np.zeros((60, 80, 3), np.uint8), WAYS[way](known()), Truth(shift=3))
    assert (spoilt.iou < 0.9).all() and (spoilt.iou > 0.3).all()


def test_the_deepest_pixel_lies_inside_and_far_from_the_outline():
    ring = planted() == 2
    x, y = deepest(ring)
    assert ring[int(y * 60), int(x * 80)]
    disc = planted() == 1
    assert np.allclose(deepest(disc), (20.5 / 80, 20.5 / 60), atol=0.02)


def test_regions_without_a_pixel_are_not_asked_for_by_points():
    masks = np.concatenate([known().masks[:1] & False, known().masks[:1]])
    assert by_points(Layout(masks, ("gone", "a disc"))).captions == ("a disc",)


def test_watershed_finds_flat_figures_from_a_point():
    owner = planted()
    photo = np.where(owner[..., None] == 0, 200, COLORS[owner]).astype(np.uint8)
    again = find_again(photo, by_points(known()), WatershedSegmenter())
    assert again.iou[0] > 0.8 and again.iou[1] > 0.8
    assert iou(again.found[2], owner == 3) > 0.35  # of two bars, that of the point


@pytest.fixture
def method(monkeypatch) -> Truth:
    """A method in the table that knows the truth."""
    module, truth = ModuleType("truth"), Truth()
    module.SCORE = ""
    module.add_flags = lambda parser: None
    module.check = lambda given, way: None
    module.identity = lambda given, machine: {"segment": {"knows": "everything"}}
    module.open_segmenter = lambda given, machine: truth
    monkeypatch.setitem(sys.modules, "truth", module)
    table = {**segment_methods.METHODS, "truth": Method("truth", "knows", ("phrases", "points", NOTHING), "knows all")}
    for place in (segment_methods, cycle):
        monkeypatch.setattr(place, "METHODS", table)
    return truth


@pytest.fixture
def call(method, pipe, monkeypatch, tmp_path: Path, capsys):
    """Return a function that runs a command line with a tiny generator: words -> (status, output, errors)."""
    monkeypatch.setattr(cycle_folder, "Session", SimpleNamespace(open=lambda *_: Session(pipe)))
    monkeypatch.setattr(cycle_folder, "known_model", lambda *_: "model")
    monkeypatch.setattr(cycle_folder, "known_adapter", lambda *_: "adapter")
    fixed = ["--method", "truth", "--generator", "tiny", "--generator_lora", str(tmp_path), "--device", "cpu"]

    def run(*words: object) -> tuple[int, str, str]:
        given = [*map(str, words), *fixed, "--num_inference_steps", "1", "--output_path", str(tmp_path / "out")]
        status = cycle.main(given, "cycle")
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def test_layouts_and_photos_close_the_loop_on_one_page(call, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    known().write(folder / "given.npz")
    for name in ("given", "alone"):
        Image.new("RGB", (80, 60), "grey").save(folder / f"{name}.jpg")
    status, output, errors = call(folder, "--ask_by", "points")
    assert status == 0, errors
    told = [re.sub("  +", "  ", line) for line in output.splitlines()]
    for number in ("masks -> image -> masks", "masks -> image -> masks [real images]", "image -> masks -> image"):
        assert any(line.startswith(f"IoU of {number}  1.0000") for line in told), output
    page = (tmp_path / "out" / "cycle.html").read_text()
    assert "default-src 'none'" in page and "a &lt;b&gt;ring" in page and "<b>ring" not in page
    assert page.count("<img ") >= 4 and "<script" not in page
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"given.png", "alone.png"}
    assert Layout.read(tmp_path / "out" / "layouts" / "alone.npz").caption == ", ".join(NAMES)


def test_a_colour_map_is_no_photo(tmp_path: Path):
    known().write(tmp_path / "given.json")
    assert cycle_folder.find_layouts_and_photos(tmp_path) == ([tmp_path / "given.json"], [])
    Image.new("RGB", (80, 60), "grey").save(tmp_path / "other.jpg")
    layouts, photos = cycle_folder.find_layouts_and_photos(tmp_path)
    assert [path.name for path in photos] == ["other.jpg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "holds neither layouts nor photos; give a folder with some"),
        (["nowhere"], "nowhere: is no folder"),
        (["empty", "--phrases", "a", "a"], "--phrases 'a': is given twice"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], message: str, call, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    status, _, errors = call(tmp_path / words[0], *words[1:])
    assert status == 2 and message in errors and len(errors.splitlines()) == 1, errors
