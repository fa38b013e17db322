"""Words that a small model knows: the shipped layouts ask for nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.shapes.make.publish import write_world
from seg2any.attention.settings import PLAIN, ConditionSettings
from seg2any.data.shapes import ShapesDataset
from seg2any.generate.model import read_facts
from seg2any.generate.preflight import ModelFacts, check_layout
from seg2any.generate.world import FILE, World, read_world
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY

SHAPES = REPOSITORY / "examples" / "shapes"


def test_the_shipped_file_has_the_words_of_the_training_captions(tmp_path: Path):
    write_world(tmp_path)
    assert (tmp_path / FILE).read_bytes() == (SHAPES / "model" / FILE).read_bytes()
    world, seen = read_world(str(SHAPES / "model")), set()
    for kind in ("normal", "badges"):
        data = ShapesDataset("train", 150, kind)
        for index in range(len(data)):
            annotation = data.annotation(index)
            texts = [annotation.caption, *annotation.captions]
            assert world.foreign(texts) == []
            seen |= {word.lower() for text in texts for word in text.replace(",", "").split()}
    assert seen == world.words


def test_a_caption_of_another_world_is_one_line():
    world = World("shapes only", frozenset({"a", "red", "circle"}))
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, :16], masks[1, 16:] = True, True
    layout = Layout(masks, ("A red circle", "a fluffy cat"), "a cat, above a red circle")
    facts = ModelFacts(16, lambda text: len(text.split()), world=world)
    (line,) = check_layout(layout, (32, 32), ConditionSettings(), facts).warnings
    assert line.startswith("the model knows shapes only, and has never seen 'cat', 'above', 'fluffy'; use")
    (line,) = check_layout(layout, (32, 32), PLAIN, facts).warnings
    assert "'fluffy'" not in line and "'cat'" in line, "plain settings read the global caption only"
    assert check_layout(layout, (32, 32), ConditionSettings(), replace(facts, world=None)).warnings == ()


@pytest.mark.parametrize(("size", "warned"), [((640, 640), False), ((656, 64), True), ((64, 656), True)])
def test_images_beyond_the_largest_side_are_warned_of_where_no_adapter_says_so(size: tuple[int, int], warned: bool):
    layout = Layout(np.ones((1, *size), bool), ("a red circle",), "a red circle on a grey background")
    facts = read_facts(str(SHAPES / "model"))
    found = check_layout(layout, size, PLAIN, facts).warnings
    assert any(f"{size[1]}x{size[0]} is larger than the 640 pixels" in line for line in found) == warned
    with_adapters = replace(ConditionSettings(), max_sequence_length=96, regional_max_sequence_length=16)
    assert not any("larger than" in line for line in check_layout(layout, size, with_adapters, facts).warnings)


def test_a_damaged_file_is_named_and_a_missing_one_says_nothing(tmp_path: Path):
    assert read_world(str(tmp_path)) is None and read_world("black-forest-labs/FLUX.1-dev") is None
    for text in ("{", json.dumps({"words": []}), "[]", '{"knows": "a", "words": [], "largest": "x"}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="world.json: cannot be read"):
            read_world(str(tmp_path))


def test_the_shipped_layouts_have_no_warnings():
    facts, settings = read_facts(str(SHAPES / "model")), ConditionSettings(max_sequence_length=96)
    settings = replace(settings, regional_max_sequence_length=16)
    for path in Layout.find(SHAPES / "masks"):
        layout = Layout.read(path)
        assert check_layout(layout, layout.size, settings, facts).warnings == (), path
        texts = " ".join([layout.caption, *layout.captions])
        assert not any(f"a {vowel}" in texts for vowel in "aeiou"), f"{path}: a orange"
