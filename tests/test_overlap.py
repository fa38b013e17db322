"""What overlapping regions mean: hidden by later ones, or shared, in every place that draws them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import ConditionSettings
from seg2any.data.folder import FolderDataset
from seg2any.diffusion.prepare import encode_layouts
from seg2any.generate.choices import overlap_remarks
from seg2any.generate.options import Options
from seg2any.generate.preflight import ModelFacts, check_layout
from seg2any.generate.recipe import differences, read_recipe
from seg2any.generate.survey import read_quietly
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.layout.draw import contour_picture
from seg2any.layout.overlap import alike_masks, visible_masks
from tests.golden_root import REPOSITORY
from tests.infer_command import infer
from tests.tiny_pipeline import CARD, fresh_pipe

MODEL = ModelFacts(pixels_per_token=16, count_tokens=lambda text: len(text.split()) + 1)
SETTINGS = ConditionSettings()


def wall_and_door(overlap: str) -> Layout:
    """Draw a wall over the whole picture of 4 x 4 tokens, and a door on its left half, listed later."""
    masks = np.zeros((2, 64, 64), bool)
    masks[0], masks[1, :, :32] = True, True
    return Layout(masks, ("a wall", "a door"), overlap=overlap)


def test_visible_masks_equal_a_painter_who_paints_one_after_the_other():
    masks = np.random.default_rng(0).random((9, 20, 30)) < 0.4
    canvas = np.full((20, 30), -1)
    for number, mask in enumerate(masks):
        canvas[mask] = number
    np.testing.assert_array_equal(visible_masks(masks), canvas == np.arange(9)[:, None, None])


@pytest.mark.parametrize(("overlap", "wall"), [("hide", 8), ("share", 16)])
def test_tokens_pixels_and_background_of_the_report(overlap: str, wall: int):
    report = check_layout(wall_and_door(overlap), (64, 64), SETTINGS, MODEL)
    assert [region.image_tokens for region in report.regions] == [wall, 8]
    assert [region.pixels for region in report.regions] == [wall * 256, 2048]
    assert report.overlap == overlap and report.background == 0


def test_hidden_outlines_are_in_neither_contour_nor_panel():
    left, right = np.zeros((2, 64, 64), bool)
    left[:, :32], right[:, 32:] = True, True
    apart = Layout(np.stack([right, left]), ("a wall", "a door"))
    hidden, shared = (contour_picture(wall_and_door(overlap), (64, 64)) for overlap in ("hide", "share"))
    assert hidden.tobytes() == contour_picture(apart, (64, 64)).tobytes() != shared.tobytes()


def test_the_pipeline_lays_out_tokens_as_the_layout_says(stock_pipe):
    base = fresh_pipe(stock_pipe).base
    hidden, shared = (
        encode_layouts([wall_and_door(overlap)], (64, 64), base, CARD.condition)[0] for overlap in ("hide", "share")
    )
    owned = torch.from_numpy(hidden.masks).sum((1, 2)).tolist(), torch.from_numpy(shared.masks).sum((1, 2)).tolist()
    assert owned[0][0] * 2 == owned[1][0] and owned[0][1] == owned[1][1]
    flat = encode_layouts([wall_and_door("hide").flattened()], (64, 64), base, CARD.condition)[0]
    np.testing.assert_array_equal(flat.cond_positions, hidden.cond_positions)


def test_a_hidden_region_and_repeated_masks_are_named():
    masks = wall_and_door("hide").masks
    beneath = Layout(masks[::-1].copy(), ("a door", "a wall"))
    (warning,) = check_layout(beneath, (64, 64), SETTINGS, MODEL).warnings
    assert "region 1 ('a door')" in warning and "hidden" in warning
    assert check_layout(replace(beneath, overlap="share"), (64, 64), SETTINGS, MODEL).warnings == ()
    nearly = masks[[0, 0]].copy()
    nearly[1, :3] = False
    for overlap in ("hide", "share"):
        found = check_layout(Layout(nearly, ("a", "b"), overlap=overlap), (64, 64), SETTINGS, MODEL).warnings
        assert "regions 1 ('a') and 2 ('b')" in found[0] and "95%" in found[0]


def test_masks_are_alike_from_nine_tenths_of_their_union_on():
    masks = np.zeros((4, 1, 100), bool)
    masks[0, :, :100], masks[1, :, :90], masks[2, :, :80] = True, True, True
    assert [(i, j) for i, j, _ in alike_masks(masks)] == [(0, 1)]  # 80 of 90 is less, and an empty mask is like none
    assert next(alike_masks(masks))[2] == pytest.approx(0.9)


def write_wall_and_door(folder: Path) -> Path:
    folder.mkdir()
    for name, mask in zip(("wall", "door"), wall_and_door("hide").masks, strict=True):
        Image.fromarray(mask).save(folder / f"{name}.png")
    regions = [{"mask": f"{name}.png", "text": f"a {name}"} for name in ("wall", "door")]
    (folder / "house.json").write_text(json.dumps({"segments_info": regions}))
    return folder


def test_the_command_line_decides_then_the_kind_of_file(tmp_path: Path):
    drawn = write_wall_and_door(tmp_path / "house")
    runs = [{"segmentation": {"size": [2, 3], "counts": counts}, "text": "a"} for counts in ([0, 6], [0, 4, 2])]
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"annotations": runs}))
    found = {path: read_quietly(path, Options(seg_mask_path=path)) for path in (drawn, coco)}
    assert [found[path][0].overlap for path in (drawn, coco)] == ["hide", "share"]
    assert found[drawn][1] == [] and "4 pixels" in found[coco][1][0]
    for overlap in ("hide", "share"):
        told = [read_quietly(path, Options(seg_mask_path=path, overlap=overlap)) for path in (drawn, coco)]
        assert [layout.overlap for layout, _ in told] == [overlap] * 2 and not any(lines for _, lines in told)


def test_data_sets_share_unless_they_are_told_to_hide(tmp_path: Path):
    write_wall_and_door(tmp_path / "house")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "house.png")
    areas = {}
    for overlap in ("share", "hide"):
        data = FolderDataset(tmp_path / "photos", tmp_path / "house", overlap=overlap)
        assert data[0].layout.overlap == "share"
        np.testing.assert_array_equal(data.annotation(0).regions.masks(), data[0].layout.visible)
        areas[overlap] = data[0].layout.masks.sum((1, 2)).tolist(), data.fingerprint()
    assert areas["share"][0] == [4096, 2048] and areas["hide"][0] == [2048, 2048]
    assert areas["share"][1] != areas["hide"][1]
    with pytest.raises(LayoutError, match="overlap"):
        FolderDataset(tmp_path / "photos", tmp_path / "house", overlap="top")


def test_the_card_only_leads_to_a_warning():
    card = AdapterCard(overlap="share")
    assert AdapterCard.from_json(card.to_json(), "x").overlap == "share"
    assert overlap_remarks(["hide", "share", None], card) == ["overlap is hide, but the adapter was trained with share"]
    assert overlap_remarks([None], card) == overlap_remarks(["hide"], AdapterCard()) == overlap_remarks(["hide"], None)
    assert "overlap" not in json.loads(AdapterCard().to_json()), "what is unknown is not written"


def test_recipes_of_older_versions_mean_share():
    old, share, hide = {"layout": {}}, {"layout": {"overlap": "share"}}, {"layout": {"overlap": "hide"}}
    assert differences(old, share) == [] and differences(old, hide) == ["layout.overlap"]


@pytest.mark.slow
def test_images_differ_and_their_recipes_say_how(tmp_path: Path):
    drawn = write_wall_and_door(tmp_path / "house")
    images = {}
    for overlap, flags in {"hide": {}, "share": {"overlap": "share"}}.items():
        out = tmp_path / overlap
        lora = REPOSITORY / "examples" / "shapes" / "lora"
        done = infer(seg_mask_path=drawn, output_path=out, lora_ckpt_path=lora, num_inference_steps=2, **flags)
        assert done.returncode == 0, done.stderr
        (path,) = out.glob("*.png")
        assert read_recipe(path)["layout"]["overlap"] == overlap
        images[overlap] = np.asarray(Image.open(path)).astype(int)
    assert abs(images["hide"] - images["share"]).mean() > 1
