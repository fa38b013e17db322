"""`--self_check`: the model's attention on its own images, in recipe, panel and output."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seg2any.adapters.fold import fold
from seg2any.generate.recipe import MADE, read_recipe
from seg2any.generate.self_check import KEY, SelfCheck, with_overlaps
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from tests.infer_command import MODEL, files, infer, layout
from tests.tiny_flux import adapted, tiny


@pytest.fixture
def planted(monkeypatch) -> SelfCheck:
    """Return a check whose segmenter finds the left half for the first caption and nothing else."""

    def segment(image, prompt):
        masks = np.zeros((len(prompt.categories), *image.shape[:2]), bool)
        masks[0, :, : image.shape[1] // 2] = True
        return Layout(masks, prompt.categories)

    monkeypatch.setattr(SelfCheck, "_segmenter", lambda *_: SimpleNamespace(segment=segment))
    return SelfCheck(SimpleNamespace(pipeline=SimpleNamespace(transformer=tiny(), base=SimpleNamespace(probing=True))))


def test_overlaps_are_those_of_planted_regions(planted: SelfCheck):
    image, masks = np.zeros((8, 8, 3), np.uint8), np.zeros((3, 4, 4), bool)
    masks[0, :, :1], masks[1, :, 3], masks[2, :, 1] = True, True, True
    assert planted.overlaps(Layout(masks, ("a", "b", "c")), image) == [0.5, 0, 0]
    assert planted.overlaps(Layout(masks, ("a", "b", "a")), image) == [1, 0, 1]  # equal captions are one region
    assert planted.overlaps(Layout(masks, ("a", "background", "c")), image) == [0.5, 0.5, 0]
    assert planted.overlaps(Layout(masks[:0], ()), image) == []


def test_a_panel_names_the_overlaps_of_its_recipe():
    given = layout("a")
    assert with_overlaps(given, {MADE: {}}) is given
    named = with_overlaps(given, {MADE: {KEY: [0.25, 1]}})
    assert named.captions == ("a red circle (self-check 0.25)", "a star (self-check 1.00)")


def test_a_model_that_nobody_measured_is_refused():
    with pytest.raises(UserError, match="--self_check: nobody knows which blocks"):
        SelfCheck(SimpleNamespace(pipeline=SimpleNamespace(transformer=tiny(), base=SimpleNamespace(probing=None))))


def test_images_stay_and_recipes_tell_each_region(tmp_path: Path):
    """Two images with adapters: the second would differ if the check of the first had left them off."""
    for name in "ab":
        layout(name).write(tmp_path / "in" / f"{name}.json")
    given = {"seg_mask_path": tmp_path / "in", "lora_ckpt_path": MODEL.parent / "lora"}
    told = infer("--self_check", "--save_panels", **given, output_path=tmp_path / "checked")
    plain = infer(**given, output_path=tmp_path / "plain")
    assert told.returncode == plain.returncode == 0, told.stderr
    assert "b.png: self-check mIoU " in told.stderr and "self-check" not in plain.stderr
    assert files(tmp_path / "checked") == ["a.png", "a_panel.png", "b.png", "b_panel.png"]
    for name in ("a.png", "b.png"):
        recipes = [read_recipe(tmp_path / folder / name) for folder in ("checked", "plain")]
        found = recipes[0][MADE].pop(KEY)
        assert recipes[0] == recipes[1] and len(found) == 2 and all(0 <= one <= 1 for one in found)
        images = [np.asarray(Image.open(tmp_path / folder / name)) for folder in ("checked", "plain")]
        assert np.array_equal(*images)
    assert "0 images to make" in infer(**given, output_path=tmp_path / "checked").stdout


def test_folded_adapters_are_refused():
    model = adapted()
    fold(model)
    with pytest.raises(UserError, match="^--self_check"):
        SelfCheck(SimpleNamespace(pipeline=SimpleNamespace(transformer=model)))
