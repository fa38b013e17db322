"""Prompts with boxes of FLUX 3 and Ideogram 4: documented examples, round trips, and what is refused or lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seg2any.commands import verbs
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.layout.convert import convert, read_any
from seg2any.layout.flux3 import parse_caption, split_caption, write_caption
from seg2any.layout.grid_boxes import box_mask, grid_box
from seg2any.layout.ideogram4 import read_ideogram4, write_json_caption
from seg2any.system.nouns import head_noun, noun_phrase

TEXT = (
    'A risograph of a tea table <table_1> holding "[3] cups" and a stand <stand_1>. '
    '[{"id": "table_1", "bbox": [500, 0, 1000, 1000], "desc": "a wicker table"}, '
    '{"id": "stand_1", "bbox": [250, 400, 750, 600], "desc": "a tiered stand"}]'
)
IDEOGRAM = {
    "high_level_description": "A golden retriever riding a skateboard.",
    "style_description": {"medium": "photograph", "color_palette": ["#F5C542"]},
    "compositional_deconstruction": {
        "background": "a sidewalk",
        "elements": [
            {"type": "obj", "bbox": [200, 300, 800, 900], "desc": "a golden retriever", "color_palette": ["#FFFFFF"]},
            {"type": "text", "bbox": [0, 0, 100, 1000], "text": "GO!", "desc": "white capitals"},
            {"type": "obj", "desc": "a bird somewhere"},
        ],
    },
}


def sample(size: tuple[int, int] = (40, 60)) -> Layout:
    masks = np.zeros((3, *size), bool)
    masks[0], masks[1, 3:17, 5:31], masks[2, 10:33, 20:59] = True, True, True
    return Layout(masks, ("a meadow", "A black cat", "a cat with [one] bell; old"), "A black cat sleeps.", name="a")


def test_a_documented_prompt_of_flux3_becomes_boxes_from_back_to_front():
    layout, said = parse_caption("x", TEXT, (8, 10), "x")
    assert layout.captions == ("a wicker table", "a tiered stand") and not said and layout.overlap == "hide"
    assert layout.caption == 'A risograph of a tea table holding "[3] cups" and a stand.'
    table, stand = np.zeros((2, 8, 10), bool)
    table[4:], stand[2:6, 4:6] = True, True
    assert np.array_equal(layout.masks, [table, stand])


def test_what_is_written_for_flux3_follows_the_documented_form():
    paragraph, rows = split_caption(write_caption(sample()))
    assert [list(row) for row in rows] == [["id", "bbox", "desc"]] * 3
    assert [row["id"] for row in rows] == ["meadow_1", "cat_1", "cat_2"]  # of one noun, from left to right
    assert rows[1]["bbox"] == [75, 83, 425, 517]  # 3/40, 5/60, 17/40, 31/60 on a grid of 1000
    assert all(paragraph.count(f"<{row['id']}>") == 1 for row in rows)
    assert paragraph.startswith("A black cat <cat_1> sleeps. ") and "\n" not in write_caption(sample())


@pytest.mark.parametrize("form", ["flux3", "ideogram4"])
@pytest.mark.parametrize("caption", [None, "A black cat sleeps.", 'words: "In the picture: x."'])
def test_boxes_and_captions_come_back_to_the_pixel(form: str, caption: str | None, tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(10):
        height, width = rng.integers(3, 999, 2)
        masks = np.zeros((3, height, width), bool)
        for mask in masks:
            top, left = rng.integers(height), rng.integers(width)
            mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
        given = Layout(
            masks, ("a cat, sitting", "a cat, sitting", 'white capitals, the text "GO [1]"'), caption, name="a"
        )
        given.write(tmp_path / f"{number}.npz")
        target = tmp_path / f"{number}" / ("a.txt" if form == "flux3" else "a.json")
        said = list(convert(tmp_path / f"{number}.npz", target, form, {}))
        assert len(said) == 2 and f"the size {width}x{height}" in said[0]
        ((back, lost),) = read_any(target.parent, {}, (height, width))
        assert (back.captions, back.caption, back.name, lost) == (given.captions, caption, "a", [])
        assert np.array_equal(back.masks, masks)


def test_ideogram4_is_read_and_names_what_it_cannot_carry(tmp_path: Path):
    layout, said = read_ideogram4(tmp_path / "x.json", {"json_prompt": IDEOGRAM}, (10, 10))
    assert layout.captions == ("a golden retriever", 'white capitals, the text "GO!"')
    assert layout.caption == IDEOGRAM["high_level_description"]
    assert np.argwhere(layout.masks[0])[[0, -1]].tolist() == [[2, 3], [7, 8]] and layout.masks[1, 0].all()
    assert "'a bird somewhere') has no bbox" in said[0] and "the background, the style, palettes" in said[1]
    written = write_json_caption(layout)
    elements = IDEOGRAM["compositional_deconstruction"]["elements"]
    assert written["compositional_deconstruction"]["elements"] == [
        {key: value for key, value in element.items() if key != "color_palette"} for element in elements[:2]
    ]
    assert list(written) == ["high_level_description", "compositional_deconstruction"]


def test_shapes_that_boxes_lose_are_named(tmp_path: Path):
    masks = np.zeros((2, 4, 4), bool)
    masks[0], masks[1] = True, np.eye(4, dtype=bool)
    Layout(masks, ("a wall", "a line"), name="a", seed=3).write(tmp_path / "a.npz")
    said = " ".join(convert(tmp_path / "a.npz", tmp_path / "out", "flux3", {}))
    assert "the shapes of 1 regions, of which their boxes are left" in said and "the seed" in said


def test_edits_of_flux3_are_read_by_their_box_in_the_result():
    row = {
        "id": "cup_1",
        "from": "ref_image_0",
        "src_bbox": [0, 0, 9, 9],
        "tgt_bbox": [0, 0, 500, 500],
        "desc": "a cup",
    }
    gone = {**row, "id": "van_1", "tgt_bbox": None}
    layout, said = parse_caption("x", f"Move the cup <cup_1>. {json.dumps([row, gone])}", (4, 4), "x")
    assert layout.captions == ("a cup",) and layout.masks[0, :2, :2].all() and "van_1 is not in the result" in said[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [0, 0, 1, 1]}, "in shares of the image; multiply"),
        ({"bbox": [500, 0, 100, 1000]}, "top before bottom"),
        ({"bbox": [0, 0, 100, 1001]}, "from 0 to 1000, whatever"),
        ({"bbox": "all"}, r"write \[top, left, bottom, right\]"),
        ({"bbox": [0, 0, True, 5]}, r"write \[top, left"),
        ({"id": "a cat"}, "write letters and a number"),
        ({"desc": " "}, "row 1: desc is empty"),
    ],
)
def test_bad_rows_of_flux3_are_one_line(change: dict, message: str):
    row = {"id": "cat_1", "bbox": [0, 0, 500, 500], "desc": "a cat", **change}
    with pytest.raises(LayoutError, match=message):
        parse_caption("x", f"A cat. {json.dumps([row])}", (4, 4), "x")


@pytest.mark.parametrize("change", [{"elements": []}, {"elements": [3]}, {"elements": [{"type": "sky", "desc": "x"}]}])
def test_bad_captions_of_ideogram4_are_refused(change: dict, tmp_path: Path):
    with pytest.raises(LayoutError, match=r"x\.json"):
        read_ideogram4(tmp_path / "x.json", {"compositional_deconstruction": {"background": "", **change}}, (4, 4))


def test_prompts_are_read_from_bodies_of_requests_and_files_of_text(tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(json.dumps({"prompt": TEXT}))
    (tmp_path / "in" / "b.txt").write_text(json.dumps(IDEOGRAM))
    (tmp_path / "in" / "notes.txt").write_text("no prompt [1]")
    words = ["layouts", "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "npz", "--height", "30"]
    assert verbs.main([*words, "--width", "50"]) == 0, capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.npz", "b.npz"}
    assert Layout.read(tmp_path / "out" / "a.npz").size == (30, 50)


def test_a_box_is_never_empty():
    dot = np.zeros((2000, 3000), bool)
    dot[-1, -1] = True
    top, left, bottom, right = grid_box(dot)
    assert top < bottom <= 1000 and left < right <= 1000 and box_mask([999, 0, 1000, 1], (4, 4)).sum() == 1


@pytest.mark.parametrize(
    ("caption", "phrase", "noun"),
    [
        ("A black cat sitting on a mat, with a bell", "black cat", "cat"),
        ("a cup of coffee", "cup of coffee", "cup"),
        ("the living room", "living room", "room"),
        ("A wall painted in red", "wall", "wall"),
        ("The image shows an old man. He smiles.", "old man", "man"),
        ("Dog", "Dog", "dog"),
        ("with", "with", "with"),
    ],
)
def test_nouns_of_captions(caption: str, phrase: str, noun: str):
    assert (noun_phrase(caption), head_noun(caption)) == (phrase, noun)
