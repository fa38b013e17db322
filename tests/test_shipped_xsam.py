"""The shipped X-SAM, asked by the command in its README, and about scenes that it has never seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.commands import segment
from seg2any.data.shapes import ShapesDataset
from seg2any.layout import Layout
from seg2any.segment.segmenter import Prompt
from seg2any.segment.xsam.folder import open_speaker
from seg2any.segment.xsam.segmenter import XSamSegmenter
from tests.infer_command import REPOSITORY

FOLDER = REPOSITORY / "examples" / "shapes" / "xsam"
LARGEST = 12 * 2**20
PHRASE = "the cyan striped circle"


@pytest.fixture(scope="module")
def segmenter() -> XSamSegmenter:
    return XSamSegmenter(open_speaker(FOLDER, torch.device("cpu"), torch.float32), "xsam")


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found & wanted).sum() / (found | wanted).sum())


def test_its_folder_is_small_and_holds_nothing_to_unpickle():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md", ".png"}


def test_phrases_find_figures_of_scenes_that_it_has_never_seen(segmenter: XSamSegmenter):
    """Against a mask of all figures, too, which a model that ignores the words would find."""
    found, ignorant = [], []
    for index in (1, 4, 7, 11):
        scene = ShapesDataset("test", 12).scene(index)
        image, masks = scene.render()
        phrases = tuple("the " + caption.split(" ", 1)[1] for caption in scene.captions)
        layout = segmenter.segment(image, Prompt(phrases=phrases))
        found += [overlap(*pair) for pair in zip(layout.masks, masks, strict=True)]
        ignorant += [overlap(masks.any(0), mask) for mask in masks]
    assert len(found) > 15 and np.mean(found) > max(0.6, 2 * np.mean(ignorant))


def test_the_command_of_its_card_finds_what_it_names(tmp_path):
    words = [str(FOLDER / "scene.png"), "--method", "xsam", "--pretrained_model_name_or_path", str(FOLDER)]
    words += ["--phrases", PHRASE, "--device", "cpu", "--output_path", str(tmp_path)]
    assert PHRASE in (FOLDER / "README.md").read_text()
    assert segment.main(words, "segment") == 0
    layout = Layout.read(tmp_path / "scene.json")
    image = np.asarray(Image.open(FOLDER / "scene.png").convert("RGB")).astype(int)
    cyan = (image[..., 2] > 180) & (image[..., 0] < 90)
    assert layout.captions == (PHRASE,) and (layout.masks[0] & cyan).sum() > 0.95 * cyan.sum()
    assert layout.masks[0].sum() < 2.2 * cyan.sum()  # half of a striped figure is ink
