"""Layouts from and to other programs: hand-made files, round trips, and what is said to be lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.commands import verbs
from seg2any.data.label_maps import read_class_captions
from seg2any.layout import Layout
from seg2any.layout.carried import FORMATS
from seg2any.layout.checks import LayoutError
from seg2any.layout.convert import convert, read_any
from seg2any.layout.rle import decode_rle, encode_rle
from seg2any.system.errors import UserError

NAMES = read_class_captions("ade20k")
MASKS = [form for form, holds in FORMATS.items() if not holds.boxes]
ELSEWHERE = {"json": "a.json", "npz": "a.npz", "coco": "a.json", "labelme": "a.json", "cvat": "annotations.xml"}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>x</name></task></meta>
  <image id="0" name="dir/one.jpg" width="8" height="6">
    <box label="top" source="manual" occluded="0" xtl="2" ytl="1" xbr="5" ybr="4" z_order="3"></box>
    <polygon label="low" points="0,0;4,0;4,2;0,2" z_order="0"><attribute name="colour">red</attribute></polygon>
    <mask label="thing" rle="1, 2, 2, 1" left="5" top="4" width="3" height="2" z_order="1">
      <attribute name="caption">a small &amp; odd thing</attribute></mask>
    <polyline label="line" points="0,0;1,1" z_order="0"></polyline>
  </image>
  <image id="1" name="empty.jpg" width="8" height="6"></image>
  <image id="2" name="two.jpg" width="4" height="4"><box label="wall" xtl="0" ytl="0" xbr="4" ybr="4"></box></image>
</annotations>"""


def sample(**more: object) -> Layout:
    """Make a layout of a ring with a hole, and a spot in the hole, that both are classes of ADE20K."""
    masks = np.zeros((2, 7, 9), dtype=bool)
    masks[0, 1:6, 1:8] = True
    masks[0, 3, 3:5] = False
    masks[1, 3, 3:5] = True
    return Layout(masks, ("wall", "sky"), name="a", **more)


def lines(source: Path, target: Path, form: str) -> list[str]:
    return list(convert(source, target, form, NAMES))


def only(source: Path) -> Layout:
    ((layout, _),) = read_any(source, NAMES)
    return layout


def regions(layout: Layout) -> dict[str, bytes]:
    """Return the masks by caption, whatever their order."""
    return {text: np.packbits(mask).tobytes() for text, mask in zip(layout.captions, layout.masks, strict=True)}


@pytest.mark.parametrize("form", MASKS)
def test_masks_and_captions_survive_every_format(form: str, tmp_path: Path):
    sample().write(tmp_path / "in" / "a.npz")
    said = lines(tmp_path / "in", tmp_path / "out", form)
    assert len(said) == 1, said
    back = only(tmp_path / "out")
    assert regions(back) == regions(sample()) and back.name == "a" and back.size == (7, 9)
    lines(tmp_path / "out", tmp_path / "again", "npz")
    assert regions(Layout.read(tmp_path / "again" / "a.npz")) == regions(sample())


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_format_has_no_place_for_is_named_and_all_else_is_kept(form: str, tmp_path: Path):
    given = sample(caption="a room", seed=7, scores=np.array([0.5, 1.0]), source="sam")
    given.write(tmp_path / "a.npz")
    said = " ".join(lines(tmp_path / "a.npz", tmp_path / "out", form))
    back = only(tmp_path / "out")
    words = {"caption": "global caption", "seed": "the seed", "scores": "the scores", "source": "the segmenter"}
    for name, word in words.items():
        was, value = getattr(given, name), getattr(back, name)
        kept = value is not None and np.array_equal(was, value)
        assert kept != (word in said), (name, said)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("overlap", ["hide", "share"])
def test_overlaps_are_kept_or_named(form: str, overlap: str, tmp_path: Path, monkeypatch):
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, :3], masks[1, 2:] = True, True  # one row is in both
    given = Layout(masks, ("wall", "sky"), name="a", overlap=overlap)
    monkeypatch.setattr("seg2any.layout.convert.read_any", lambda source, names, size: iter([(given, [])]))
    said = " ".join(lines(tmp_path / "a.npz", tmp_path / "out", form))
    monkeypatch.undo()
    ((back, _),) = read_any(tmp_path / "out", NAMES, given.size)
    is_same = np.array_equal(back.visible, given.visible)
    assert is_same or "4 pixels" in said
    assert is_same == (overlap == "hide" or FORMATS[form].overlaps == "share"), said


def test_empty_masks_and_foreign_captions_are_left_out_by_name(tmp_path: Path):
    masks = np.zeros((3, 2, 2), dtype=bool)
    masks[0, 0], masks[1, 1] = True, True
    Layout(masks, ("wall", "a dragon", "sky"), name="a").write(tmp_path / "a.npz")
    said = " ".join(lines(tmp_path / "a.npz", tmp_path / "out", "ade"))
    assert "1 regions that are no class of ADE20K ('a dragon')" in said
    assert "1 regions that have no pixel, or are hidden ('sky')" in said
    assert only(tmp_path / "out").captions == ("wall",)
    lines(tmp_path / "a.npz", tmp_path / "b.npz", "npz")
    assert len(only(tmp_path / "b.npz").masks) == 3
    Layout(masks[:2], ("dragon", "elf"), name="c").write(tmp_path / "c.npz")
    with pytest.raises(LayoutError, match="no region is left in ade .* choose npz"):
        lines(tmp_path / "c.npz", tmp_path / "none", "ade")
    assert not (tmp_path / "none").exists()


def test_labelme_shapes_are_drawn_as_labelme_means_them(tmp_path: Path):
    shapes = [
        {"label": "box", "shape_type": "rectangle", "points": [[5, 4], [1, 1]], "group_id": None},
        {"label": "pair", "shape_type": "polygon", "points": [[0, 0], [1, 0], [1, 1], [0, 1]], "group_id": 4},
        {"label": "pair", "points": [[7, 5], [8, 5], [8, 6], [7, 6]], "group_id": 4, "description": "old"},
        {"label": "disc", "shape_type": "circle", "points": [[20, 20], [20, 30]], "group_id": None},
        {"label": "eye", "shape_type": "point", "points": [[1, 1]], "group_id": None},
    ]
    document = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": "x.jpg", "imageData": "aaaa"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**document, "imageHeight": 40, "imageWidth": 40}))
    ((layout, said),) = read_any(path, NAMES)
    assert layout.captions == ("box", "pair", "disc")
    expected = np.zeros((40, 40), dtype=bool)
    expected[1:4, 1:5] = True
    assert np.array_equal(layout.masks[0], expected)
    assert np.argwhere(layout.masks[1]).tolist() == [[0, 0], [5, 7]]
    assert abs(layout.masks[2].sum() - np.pi * 100) < 4 and layout.masks[2][20, 20]
    assert "shapes[4] is a point, which has no area" in said[0] and "descriptions, the image itself" in said[1]
    Image.new("RGB", (40, 30)).save(tmp_path / "x.jpg")
    path.write_text(json.dumps(document))
    assert only(path).size == (30, 40)


def test_cvat_shapes_are_drawn_as_cvat_means_them(tmp_path: Path):
    path = tmp_path / "x.xml"
    path.write_text(CVAT)
    (one, said), (two, _) = read_any(path, NAMES)
    assert (one.name, one.size, two.name, two.captions) == ("one", (6, 8), "two", ("wall",))
    assert one.captions == ("low", "a small & odd thing", "top")  # by z_order
    assert np.argwhere(one.masks[1]).tolist() == [[4, 6], [4, 7], [5, 7]]
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:4, 2:5] = True
    assert np.array_equal(one.masks[2], expected) and two.masks.all()
    assert "polyline (no area), attribute 'colour'" in said[0]


def test_a_box_of_cvat_turns_clockwise(tmp_path: Path):
    box = '<box label="x" xtl="2" ytl="4" xbr="8" ybr="6" rotation="{}"/>'
    for turn, size in ((0, (2, 6)), (90, (6, 2))):
        (tmp_path / "x.xml").write_text(
            f'<annotations><image id="0" name="a" width="10" height="10">{box.format(turn)}</image></annotations>'
        )
        mask = only(tmp_path / "x.xml").masks[0]
        assert (np.ptp(np.flatnonzero(mask.any(1))) + 1, np.ptp(np.flatnonzero(mask.any(0))) + 1) == size


def test_both_ade20ks(tmp_path: Path):
    folder = tmp_path / "ade" / "annotations" / "validation"
    folder.mkdir(parents=True)
    Image.fromarray(np.array([[0, 1], [3, 3]], dtype=np.uint8)).save(folder / "b.png")
    layout = only(tmp_path / "ade")
    assert layout.captions == (NAMES[1], NAMES[3]) and layout.masks[1].tolist() == [[False, False], [True, True]]
    (tmp_path / "ade" / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0\t1\t1\t1\tone\n3\t0\t1\t1\t1\tthree\n"
    )
    assert only(tmp_path / "ade").captions == ("one", "three")
    square = {"x": [0, 2, 2, 0], "y": [0, 0, 2, 2]}
    objects = [
        {"name": "house", "polygon": square, "parts": {"part_level": 0}},
        {"name": "door", "polygon": square, "parts": {"part_level": 1}},
    ]
    path = tmp_path / "full.json"
    path.write_text(json.dumps({"annotation": {"imsize": [3, 4, 3], "object": objects}}))
    ((full, said),) = read_any(path, NAMES)
    assert full.captions == ("house",) and full.masks.sum() == 4 and "1 parts of objects" in said[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotations>&x;</annotations>', "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "declares a document type"),
        ("<annotations/>", "no image has a shape"),
        ("<svg/>", "begins with 'svg'"),
        ("<annotations>" * 200, "is nested too deeply"),
        ("<annotations><track/></annotations>", "is CVAT for video"),
        ("not xml", "is no XML"),
        (CVAT.replace('width="8"', 'width="-8"'), "width is '-8'"),
        (CVAT.replace('width="8"', 'width="999999999"'), "megapixels"),
        (CVAT.replace("1, 2, 2, 1", "1, 2, 2"), "rle does not cover"),
        (CVAT.replace("1, 2, 2, 1", "1, 2, 2, x"), "write run lengths"),
        (CVAT.replace('left="5"', 'left="6"'), "reaches out of the image"),
        (CVAT.replace("0,0;4,0;4,2;0,2", "0,0;4"), "points are"),
        (CVAT.replace("0,0;4,0;4,2;0,2", "0,0;4,nan;4,2"), "points is 'nan'"),
        (CVAT.replace('label="top"', 'label=" "'), "label is empty"),
    ],
)
def test_bad_xml_is_one_line(text: str, message: str, tmp_path: Path):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(LayoutError) as caught:
        lines(tmp_path / "x.xml", tmp_path / "out", "npz")
    assert message in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imageHeight": None}, "imageHeight and imageWidth are missing"),
        ({"imageHeight": 10**9}, "whole number|megapixels"),
        ({"shapes": [3]}, r"shapes\[0\] is a number"),
        ({"shapes": []}, "no shape has an area"),
        ({"shapes": [{"label": "a", "points": [[0, 0]]}]}, "a polygon has 1 points"),
        ({"shapes": [{"label": "a", "points": "x"}]}, "points are 'x'"),
        ({"shapes": [{"label": "a", "points": [[0, 0], [1, 1]], "shape_type": "star"}]}, "shape_type is 'star'"),
        ({"shapes": [{"label": "", "points": [[0, 0], [1, 1], [2, 0]]}]}, "label is empty"),
        ({"shapes": [{"label": "a", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "%"}]}, "is no PNG"),
        ({"seed": "x", "shapes": [{"label": "a", "points": [[0, 0], [4, 0], [4, 4]]}]}, "seed is 'x'"),
    ],
)
def test_bad_labelme_is_one_line(change: dict, message: str, tmp_path: Path):
    document = {"shapes": [], "imageHeight": 4, "imageWidth": 4, "imagePath": "../../x.jpg", **change}
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(LayoutError, match=message):
        lines(tmp_path / "x.json", tmp_path / "out", "npz")


def test_run_lengths_are_encoded_as_they_are_read():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((5, 7)) < random.random()
        mask[random.integers(5), random.integers(7)] = True
        assert np.array_equal(decode_rle("x", json.loads(json.dumps(encode_rle(mask)))), mask)


def test_the_command_names_files_and_never_overwrites(tmp_path: Path, capsys):
    for name in ("a", "b"):
        sample(seed=1).write(tmp_path / "in" / f"{name}.json")
    words = ["layouts", "convert", str(tmp_path / "in"), str(tmp_path / "out.xml"), "--to", "cvat"]
    assert verbs.main(words) == 0
    said = capsys.readouterr().out
    assert "a: not carried over: the seed" in said and "out.xml: 2 images" in said
    before = (tmp_path / "out.xml").read_bytes()
    assert verbs.main(words) == 2 and "is there already" in capsys.readouterr().err
    assert (tmp_path / "out.xml").read_bytes() == before
    words[3:] = [str(tmp_path / "one.npz"), "--to", "npz"]
    assert verbs.main(words) == 2 and "2 layouts do not fit into one file; give a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="is there already"):
        lines(tmp_path / "in", tmp_path / "in", "json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layouts", "convrt", "x", "y"], "did you mean convert?"),
        (["layouts", "convert", "x", "y", "--to", "label-me"], "did you mean labelme?"),
        (["layouts", "convert", "x", "y", "--too", "npz"], "did you mean --to?"),
        (["layouts", "convert", "x"], "OUT: is missing; give a file for one layout, or a folder"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        verbs.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("seg2any layouts")
