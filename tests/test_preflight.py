"""Pre-flight numbers compared with independent counts, and the reason for every warning."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import unknown_parts
from seg2any.generate.model import read_facts
from seg2any.generate.preflight import ModelFacts, check_layout
from seg2any.layout import Layout
from seg2any.layout.draw import legend, overlay_picture, overlay_with_legend, panel
from tests.golden_root import REPOSITORY

MODEL = ModelFacts(pixels_per_token=16, count_tokens=lambda text: len(text.split()) + 1)  # words and an end mark
SETTINGS = ConditionSettings(max_sequence_length=6, regional_max_sequence_length=4)


def scene() -> Layout:
    """Draw a layout of 128 x 192 pixels.

    It has a large region, one inside it, and a speck of 3 x 3 pixels between token centres.
    """
    masks = np.zeros((3, 128, 192), dtype=bool)
    masks[0, 10:100, 20:150] = True
    masks[1, 40:70, 60:110] = True
    masks[2, 112:115, 160:163] = True
    return Layout(masks, ("a red wall", "a door", "a fly"), "a house", seed=5, name="house", overlap="share")


def drawn_contour_tokens(masks: np.ndarray, size: tuple[int, int]) -> int:
    canvas = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:
        found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, found, -1, 255, thickness=1)
    small = np.array(Image.fromarray(canvas).resize(size[::-1], Image.Resampling.BILINEAR))
    return sum(bool(small[y : y + 16, x : x + 16].any()) for y in range(0, size[0], 16) for x in range(0, size[1], 16))


@pytest.mark.parametrize(("size", "scale"), [((128, 192), 1), ((128, 192), 2), ((256, 384), 2), ((64, 96), 1)])
def test_token_counts_and_background_equal_independent_counts(size: tuple[int, int], scale: int):
    layout = scene()
    report = check_layout(layout, size, replace(SETTINGS, cond_scale_factor=scale), MODEL)
    grid = (size[0] // 16, size[1] // 16)
    won = torch.nn.functional.interpolate(torch.from_numpy(layout.masks)[None].float(), grid, mode="nearest-exact")[0]
    contour_size = (size[0] // scale, size[1] // scale)
    assert report.image_tokens == grid[0] * grid[1]
    assert [region.image_tokens for region in report.regions] == won.sum(dim=(1, 2)).int().tolist()
    assert report.background == pytest.approx(1 - won.amax(0).mean().item())
    assert report.contour_tokens == drawn_contour_tokens(layout.masks, contour_size)
    assert [region.contour_tokens for region in report.regions] == [
        drawn_contour_tokens(mask[None], contour_size) for mask in layout.masks
    ]


def test_pixels_overlap_and_captions():
    report = check_layout(scene(), (128, 192), SETTINGS, MODEL)
    assert [region.pixels for region in report.regions] == [90 * 130, 30 * 50, 9]
    assert [region.overlap for region in report.regions] == [pytest.approx(1500 / 11700), 1, 0]
    assert [region.share for region in report.regions] == pytest.approx([n / (128 * 192) for n in (11700, 1500, 9)])
    assert [(region.caption.tokens, region.caption.cut) for region in report.regions] == [(4, 0), (3, 0), (3, 0)]
    assert (report.caption.tokens, report.caption.limit, report.seed, report.name) == (3, 6, 5, "house")


def test_a_lost_region_is_named_and_coverage_saves_it():
    (warning,) = check_layout(scene(), (128, 192), SETTINGS, MODEL).warnings
    assert warning.startswith("region 3 ('a fly') wins no image token with its 9 pixels")
    assert "--region_assignment coverage" in warning
    saved = check_layout(scene(), (128, 192), replace(SETTINGS, region_assignment="coverage"), MODEL)
    assert saved.warnings == () and saved.regions[2].image_tokens == 1


def test_an_empty_region_can_only_be_removed():
    layout = Layout(np.zeros((1, 32, 32), dtype=bool), ("nothing",))
    for assignment in ("nearest", "coverage"):
        (warning,) = check_layout(layout, (32, 32), replace(SETTINGS, region_assignment=assignment), MODEL).warnings
        assert warning.endswith("will not be drawn; remove it")


def test_cut_captions_and_stretched_masks_are_named():
    masks = np.ones((1, 32, 64), dtype=bool)
    layout = Layout(masks, ("one two three four",), "one two three four five six seven")
    report = check_layout(layout, (64, 64), SETTINGS, MODEL, known_warnings=["from the file"])
    assert report.warnings == (
        "from the file",
        "masks of 64x32 are stretched to 64x64; choose --height and --width of the same shape",
        "the global caption loses 2 of 8 tokens; shorten it or raise --max_sequence_length",
        "region 1 ('one two three four') loses 1 of 5 caption tokens; "
        "shorten it or raise --regional_max_sequence_length",
    )


def test_plain_flux_warns_about_no_region():
    plain = replace(SETTINGS, attention_mask_method="none")
    report = check_layout(scene(), (128, 192), plain, MODEL)
    assert report.warnings == () and report.contour_tokens == 0


def test_contour_token_counts_are_zero_if_they_are_switched_off():
    report = check_layout(scene(), (128, 192), replace(SETTINGS, is_use_cond_token=False), MODEL)
    assert report.contour_tokens == 0 and {region.contour_tokens for region in report.regions} == {0}


def test_report_as_json_and_as_text():
    report = check_layout(replace(scene(), caption=None, seed=None), (128, 192), SETTINGS, MODEL)
    document = json.loads(json.dumps(report.to_json()))
    assert document["regions"][1]["caption"] == {
        "text": "a door",
        "tokens": 3,
        "limit": 4,
        "unknown": [],
        "counted": True,
        "cut": 0,
    }
    assert document["regions"][1]["pixels"] == 1500 and document["caption"] is None
    text = str(report)
    assert text.startswith("house: 192x128, no seed, no global caption, 96 image and")
    assert len(text.splitlines()) == 1 + 1 + 3 + 1 and "'a door'" in text and "warning: region 3" in text


def test_overlay_shows_regions_where_they_are():
    layout = replace(scene(), masks=scene().masks[:1], captions=("a",))
    image = Image.new("RGB", (192, 128), (10, 20, 30))
    pixels = np.asarray(overlay_picture(layout, (128, 192), image)).astype(int)
    outside = (pixels == [10, 20, 30]).all(axis=2)
    np.testing.assert_array_equal(outside, ~layout.masks[0])
    assert overlay_picture(layout, (64, 96)).size == (96, 64)


def test_panel_holds_contour_overlay_and_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8))
    pixels = np.asarray(panel(scene(), image))
    np.testing.assert_array_equal(pixels[:128, -192:], np.asarray(image))
    contour = pixels[:128, :192, 0]
    assert set(np.unique(contour)) == {0, 255} and (contour[10, 20:150] == 255).all()
    assert pixels.shape[0] == 128 + legend(scene(), 3 * 192 + 16).height


def test_legend_makes_room_for_long_and_foreign_captions():
    long = replace(scene(), captions=("word " * 60, "\N{CJK UNIFIED IDEOGRAPH-732B}" * 90, "x" * 300))
    assert legend(long, 256).height > legend(scene(), 256).height + 80
    assert overlay_with_legend(long, (16, 16)).width == 256


def test_parts_that_the_encoder_does_not_know_are_named_region_by_region():
    model = replace(MODEL, unknown_parts=lambda text: [word for word in text.split() if not word.isascii()])
    layout = replace(
        scene(), captions=("a red wall", "\u4e00\u6247\u95e8", "a fly \U0001fab0"), caption="maison \xe9t\xe9"
    )
    found = [text for text in check_layout(layout, (256, 384), SETTINGS, model).warnings if "does not know" in text]
    assert len(found) == 3
    assert found[0].startswith("the global caption has 1 of 3 tokens") and ascii("\xe9t\xe9") in found[0]
    assert found[1].startswith("region 2") and "1 of 2" in found[1] and found[2].startswith("region 3")
    plain = replace(SETTINGS, attention_mask_method="none")
    assert len(check_layout(layout, (256, 384), plain, model).warnings) == 1


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("a red circle, gr\xf6\xdfer than the caf\xe9", ()),
        ("\u4e00\u4e2a\u7ea2\u8272\u7684\u5706\u5708", ("\u4e00\u4e2a\u7ea2\u8272\u7684\u5706\u5708",)),
        ("a \u7ea2 cat \U0001f534\U0001f535", ("\u7ea2", "\U0001f534\U0001f535")),
        ("{left} to ~right", ("{", "}", "~")),
    ],
)
def test_what_t5s_tokenizer_does_not_know(caption: str, parts: tuple[str, ...]):
    folder = REPOSITORY.parent / "shared" / "t5_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"{folder} holds the tokenizer of T5")
    assert unknown_parts(AutoTokenizer.from_pretrained(folder), caption) == parts


def test_the_shipped_models_tokenizer_counts_what_it_does_not_know():
    facts = read_facts(str(REPOSITORY / "examples" / "shapes" / "model"))
    assert facts.unknown_parts("a red circle") == ()
    assert facts.unknown_parts("a red \U0001f534 \u7ea2") == ("\U0001f534", "\u7ea2")
