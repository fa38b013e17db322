"""Test layouts in memory and on disk: every format, and a clear line for every problem."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.color_map import region_colors
from tests.golden_root import REPOSITORY

RED, BLUE, GREEN, WHITE = [255, 0, 0], [0, 0, 255], [0, 255, 0], [255, 255, 255]


def two_regions() -> np.ndarray:
    """Paint uint8 [8, 12, 3]: red on the left, blue on the right, black between."""
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, :4], pixels[:, 8:] = RED, BLUE
    return pixels


def save_example(folder: Path, pixels: np.ndarray, colors: list, name: str = "example", **document) -> Path:
    """Write NAME.png and NAME.json with one region per colour, called `thing 0`, `thing 1`, ..."""
    regions = [{"color": color, "text": f"thing {n}"} for n, color in enumerate(colors)]
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps({"segments_info": regions, **document}))
    return folder / f"{name}.json"


def read_without_warning(path: Path, snap_colors: bool | None = None) -> Layout:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Layout.read(path, snap_colors)


def random_layout(rng: np.random.Generator, n: int, overlapping: bool) -> Layout:
    size = (int(rng.integers(9, 30)), int(rng.integers(9, 30)))
    if overlapping:
        masks = rng.random((n, *size)) < 0.4
    else:
        owner = rng.permutation(np.resize(np.arange(-1, n), size[0] * size[1])).reshape(size)
        masks = owner == np.arange(n)[:, None, None]
    captions = tuple(f'Ding {k} \N{SNOWMAN} "quoted"\n' for k in range(n))
    return Layout(masks, captions, "alles zusammen", seed=int(rng.integers(2**63)), name="x")


def same(first: Layout, second: Layout) -> bool:
    return first.digest() == second.digest() and first.seed == second.seed


class TestInMemory:
    def test_digest_depends_on_what_is_drawn_where_only(self):
        masks = np.zeros((2, 3, 4), dtype=bool)
        masks[0, 1, 2] = True
        layout = Layout(masks, ("a", "b"), "c", seed=1, name="n")
        assert layout.digest() == Layout(masks.copy(), ["a", "b"], "c", seed=2, name="m").digest()
        moved = np.roll(masks, 1, axis=2)
        others = [
            Layout(moved, ("a", "b"), "c"),
            Layout(masks[::-1], ("a", "b"), "c"),
            Layout(masks, ("a", "bb"), "c"),
            Layout(masks, ("a", "b")),
            Layout(masks.reshape(2, 4, 3), ("a", "b"), "c"),
        ]
        assert len({layout.digest(), *(other.digest() for other in others)}) == 6

    def test_later_regions_lie_on_top(self):
        masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], dtype=bool)
        layout = Layout(masks, ("below", "above"))
        assert layout.flattened().masks.astype(int).tolist() == [[[1, 0, 0, 0]], [[0, 1, 1, 0]]]
        assert layout.background.tolist() == [[False, False, False, True]]

    def test_a_layout_made_from_an_image_may_hold_hundreds_of_regions(self, tmp_path: Path):
        masks = np.zeros((300, 20, 30), dtype=bool)
        masks.reshape(300, -1)[np.arange(300), np.arange(300)] = True
        many = Layout(masks, ["a"] * 300)
        assert not many.shared.any() and replace(many, masks=masks | masks[:1]).shared.sum() == 1
        for name in ("many.npz", "many.json"):
            many.write(tmp_path / name)
            assert Layout.read(tmp_path / name).digest() == many.digest()

    def test_an_overlap_of_256_regions_is_one(self):
        assert Layout(np.ones((256, 1, 1), dtype=bool), ["a"] * 256).shared.all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"masks": np.zeros((2, 2))}, r"masks are float64 \[2, 2\]"),
            ({"masks": np.zeros((2, 2), dtype=bool)}, r"masks are bool \[2, 2\]"),
            ({"masks": np.zeros((1, 0, 2), dtype=bool)}, "masks are"),
            ({"masks": [[True]]}, r"masks\[0\] is bool \[1\]"),
            ({"captions": "a"}, "captions are one string"),
            ({"captions": None}, "captions are NoneType"),
            ({"captions": ("a", "b")}, "1 masks .* 2 captions"),
            ({"captions": (" \n",)}, "caption 1 is empty"),
            ({"captions": (None,)}, "caption 1 is None"),
            ({"captions": ("\ud800",)}, "surrogate"),
            ({"caption": ""}, "caption is empty"),
            ({"caption": 3}, "caption is 3"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 1.0}, "seed is 1.0"),
            ({"seed": float("nan")}, "seed is nan"),
            ({"seed": True}, "seed is True"),
            ({"seed": 2**63}, "seed is 9223372036854775808"),
            ({"scores": [0.5, 0.5]}, r"scores are float32 \[2\]"),
            ({"scores": ["high"]}, "scores: .*no numbers"),
            ({"scores": np.zeros(2)}, r"scores are float64 \[2\]"),
            ({"scores": np.array([1.5])}, "scores lie outside"),
            ({"scores": np.array([np.nan])}, "scores lie outside"),
            ({"source": None}, "source is None"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, change: dict, message: str):
        parts = {"masks": np.zeros((1, 2, 2), dtype=bool), "captions": ("a",), "name": "cat"}
        with pytest.raises(LayoutError, match=f"layout 'cat': .*{message}"):
            Layout(**{**parts, **change})


class TestRoundTrip:
    @pytest.mark.parametrize("n", [1, 5, 63])
    def test_colour_map(self, tmp_path: Path, n: int):
        layout = random_layout(np.random.default_rng(n), n, overlapping=False)
        layout.write(tmp_path / "x.json")
        for name in ("x.json", "x.png", "."):
            assert same(read_without_warning(tmp_path / name), layout)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.png"]

    def test_scores_and_source_survive_npz_and_leave_the_digest_alone(self, tmp_path: Path):
        plain = random_layout(np.random.default_rng(0), 3, overlapping=True)
        scored = replace(plain, scores=np.array([0.0, 0.25, 1.0], np.float32), source="SAM 2")
        scored.write(tmp_path / "scored.npz")
        again = read_without_warning(tmp_path / "scored.npz")
        assert same(again, plain) and again.source == "SAM 2" and again.flattened().source == "SAM 2"
        assert again.scores.dtype == np.float32 and (again.scores == scored.scores).all()
        plain.write(tmp_path / "plain.npz")
        with np.load(tmp_path / "plain.npz") as archive:
            assert sorted(archive) == ["caption", "captions", "masks", "seed"]
        again = read_without_warning(tmp_path / "plain.npz")
        assert again.scores is None and again.source == ""

    @pytest.mark.parametrize("n", [1, 63])
    def test_npz(self, tmp_path: Path, n: int):
        layout = random_layout(np.random.default_rng(n), n, overlapping=True)
        layout.write(tmp_path / "x.npz")
        assert same(read_without_warning(tmp_path / "x.npz"), layout)

    def test_npz_gives_back_regions_in_which_a_segmenter_found_nothing(self, tmp_path: Path):
        masks = np.zeros((3, 4, 5), dtype=bool)
        masks[1, 1:3, 2:] = True
        scores = np.array([0.0, 0.9, 0.1], np.float32)
        for kept in ([0, 1, 2], [0], [1], []):
            layout = Layout(masks[kept], tuple("abc"[n] for n in kept), scores=scores[kept], source="X-SAM")
            layout.write(tmp_path / "x.npz")
            again = read_without_warning(tmp_path / "x.npz")
            assert same(again, layout) and again.source == "X-SAM" and np.array_equal(again.scores, layout.scores)

    def test_without_caption_and_seed(self, tmp_path: Path):
        layout = Layout(np.ones((1, 2, 3), dtype=bool), ("a",))
        for name in ("x.json", "x.npz"):
            layout.write(tmp_path / name)
            again = read_without_warning(tmp_path / name)
            assert same(again, layout) and again.caption is None and again.seed is None and again.name == "x"

    def test_what_a_colour_map_cannot_hold_is_refused(self, tmp_path: Path):
        overlapping = Layout(np.ones((2, 2, 3), dtype=bool), ("a", "b"))
        with pytest.raises(LayoutError, match="overlap in 6 pixels"):
            overlapping.write(tmp_path / "x.json")
        with pytest.raises(LayoutError, match="region 1 "):
            overlapping.flattened().write(tmp_path / "x.json")
        with pytest.raises(LayoutError, match="x.gif"):
            overlapping.write(tmp_path / "x.gif")
        assert not list(tmp_path.iterdir())

    def test_region_colours_differ_and_none_is_black(self):
        colors = region_colors(63)
        assert len(set(colors)) == 63 and (0, 0, 0) not in colors


class TestNpz:
    GOOD = {"masks": np.ones((1, 2, 3), dtype=bool), "captions": np.array(["a"])}

    def test_numbers_count_as_masks(self, tmp_path: Path):
        np.savez(tmp_path / "x.npz", masks=np.array([[[0, 7]]]), captions=["a"], caption="b", seed=3)
        layout = read_without_warning(tmp_path / "x.npz")
        assert layout.masks.tolist() == [[[False, True]]] and (layout.caption, layout.seed) == ("b", 3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"masks": None}, "masks is missing"),
            ({"captions": None}, "captions is missing"),
            ({"masks": np.ones((2, 3), dtype=bool)}, "masks are bool"),
            ({"masks": np.array(["a"])}, "masks are"),
            ({"masks": np.zeros((0, 2, 3), dtype=bool)}, "at least one region"),
            ({"masks": np.zeros((1, 2, 3), dtype=bool)}, r"masks\[0\] has no pixel"),
            ({"masks": np.zeros((1, 2, 3), dtype=bool), "empty": np.array([1])}, r"masks\[0\] has no pixel"),
            ({"empty": np.array([0.5])}, "empty is float64"),
            ({"empty": np.array(0)}, "empty is int64"),
            ({"masks": np.full((1, 2, 3), np.nan)}, "masks contain NaN"),
            ({"captions": np.array(["a", "b"])}, "1 masks .* 2 captions"),
            ({"captions": np.array([1])}, "captions are int64"),
            ({"captions": np.array([{}], dtype=object)}, "captions has pickled Python objects, .* save strings"),
            ({"masks": np.array([{}], dtype=object)}, "masks has pickled .* save a bool array"),
            ({"seed": np.array(0.5)}, "seed is 0.5"),
            ({"seed": np.array([1, 2])}, "seed has shape"),
            ({"seed": np.array(np.nan)}, "seed is nan"),
            ({"scores": np.array([2])}, "scores are int64"),
            ({"scores": np.array([{}], dtype=object)}, "scores has pickled .* save a float array"),
            ({"source": np.array(["a"])}, "source has shape"),
            ({"caption": np.array("")}, "caption is empty"),
        ],
    )
    def test_problems(self, tmp_path: Path, change: dict, message: str):
        arrays = {name: value for name, value in {**self.GOOD, **change}.items() if value is not None}
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(LayoutError, match=f"x.npz: .*{message}"):
            Layout.read(tmp_path / "x.npz")


class TestJson:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is not valid JSON"),
            ("{", "is not valid JSON"),
            ("[" * 100_000, "nested too deeply|not valid JSON"),
            ("1" * 5000, "is not valid JSON"),
            ("[]", "is a list"),
            ("null", "is null"),
            ("3", "is a number"),
            ("{}", "segments_info is missing"),
            ('{"segments_info": {}}', "segments_info is an object"),
            ('{"segments_info": []}', "segments_info is empty"),
            ('{"segments_info": [3]}', r"segments_info\[0\] is a number"),
            ('{"segments_info": [{"color": [255, 0, 0]}]}', r"segments_info\[0\]: text is missing"),
            ('{"segments_info": [{"text": "a"}]}', "has none of color, mask, segmentation"),
            ('{"segments_info": [{"text": "a", "color": [1,1,1], "mask": "m.png"}]}', "has color and mask of"),
            ('{"segments_info": [{"text": "", "color": [255, 0, 0]}]}', r"segments_info\[0\]: text is empty"),
            ('{"segments_info": [{"text": 5, "color": [255, 0, 0]}]}', "text is 5; write a string"),
            ('{"segments_info": [{"text": "\\ud800", "color": [255, 0, 0]}]}', "surrogate"),
            ('{"segments_info": [{"text": "a", "mask": 5}]}', "mask is 5; write the file name"),
            ('{"segments_info": [{"text": "a", "mask": "\\u0000"}]}', "mask is .*; write the file name"),
            ('{"seed": NaN, GOOD}', "NaN is not a JSON number"),
            ('{"seed": -Infinity, GOOD}', "Infinity is not a JSON number"),
            ('{"seed": 1, GOOD, "seed": 2}', "'seed' appears twice"),
            ('{"segments_info": [{"text": "a", "color": [1,1,1], "text": "b"}]}', "'text' appears twice"),
            ('{"seed": -3, GOOD}', "seed is -3"),
            ('{"seed": 3.5, GOOD}', "seed is 3.5"),
            ('{"seed": 1e999, GOOD}', "seed is inf"),
            ('{"seed": "3", GOOD}', "seed is '3'"),
            ('{"caption": "", GOOD}', "caption is empty"),
            ('{"caption": ["a"], GOOD}', r"caption is \['a'\]"),
            ('{"images": [{}, {}], GOOD}', "images has 2 entries"),
        ],
    )
    def test_problems(self, tmp_path: Path, text: str, message: str):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        path.write_text(text.replace("GOOD", '"segments_info": [{"color": [255, 0, 0], "text": "a"}]'))
        with pytest.raises(LayoutError, match=f"example.json: .*({message})") as caught:
            Layout.read(path)
        assert "\n" not in str(caught.value)

    def test_text_encodings(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read_without_warning(path).captions == ("thing 0", "thing 1")
        path.write_bytes('{"caption": "\u00e9"}'.encode("latin-1"))
        with pytest.raises(LayoutError, match="byte 13 is not UTF-8"):
            Layout.read(path)


class TestFiles:
    def test_the_examples_are_clean(self):
        found = Layout.find(REPOSITORY / "examples" / "shapes" / "masks")
        layouts = {path.stem: read_without_warning(path) for path in found}
        assert len(layouts["five"].masks) == 5
        assert all(layout.caption and layout.seed is not None for layout in layouts.values())

    def test_problems(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        for name, message in {
            "none.json": "no such file",
            "none": "no such file",
            "example.txt": "no such file",
            "x" * 5000 + ".json": "cannot be opened|no such file",
        }.items():
            with pytest.raises(LayoutError, match=message):
                Layout.read(tmp_path / name)
        (tmp_path / "example.txt").write_text("")
        with pytest.raises(LayoutError, match="is not a layout"):
            Layout.read(tmp_path / "example.txt")
        whole = (tmp_path / "example.png").read_bytes()
        (tmp_path / "example.png").write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(LayoutError, match="example.png: cannot be read as an image"):
            Layout.read(path)
        (tmp_path / "example.png").write_bytes(b"not a picture")
        with pytest.raises(LayoutError, match="example.png: cannot be read as an image"):
            Layout.read(path)
        (tmp_path / "example.png").unlink()
        with pytest.raises(LayoutError, match="example.png: no such file"):
            Layout.read(path)
        Image.fromarray(two_regions()).save(tmp_path / "alone.png")
        with pytest.raises(LayoutError, match="alone.json.* is missing"):
            Layout.read(tmp_path / "alone.png")

    @pytest.mark.parametrize("side", [9000, 30000])
    def test_huge_images_are_refused_before_they_are_decoded(self, tmp_path: Path, side: int):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        Image.new("1", (side, side)).save(tmp_path / "example.png")
        with pytest.raises(LayoutError, match="megapixels; scale it down"):
            Layout.read(path)

    def test_find(self, tmp_path: Path):
        layout = Layout(np.ones((1, 2, 3), dtype=bool), ("a",))
        layout.write(tmp_path / "b.json")
        layout.write(tmp_path / "a.npz")
        layout.write(tmp_path / "folder" / "only.json")
        layout.write(tmp_path / "collection" / "x.json")
        layout.write(tmp_path / "collection" / "y.json")
        layout.write(tmp_path / "arrays" / "x.npz")
        (tmp_path / "results").mkdir()
        Image.new("1", (3, 2)).save(tmp_path / "results" / "x.png")
        (tmp_path / "notes.txt").write_text("")
        (tmp_path / ".hidden.json").write_text("")
        with pytest.warns(LayoutWarning, match=r"folders of layouts are left out: 2 \(arrays, collection\)"):
            found = Layout.find(tmp_path)
        assert [path.name for path in found] == ["a.npz", "b.json", "folder"]
        assert [Layout.read(path).name for path in found] == ["a", "b", "folder"]
        assert Layout.find(tmp_path / "b.json") == [tmp_path / "b.json"]
        (tmp_path / "empty").mkdir()
        with pytest.raises(LayoutError, match="no layout"):
            Layout.find(tmp_path / "empty")
        with pytest.raises(LayoutError, match="no such file"):
            Layout.find(tmp_path / "nothing")

    def test_a_folder_of_masks_has_one_name_however_it_is_found(self, tmp_path: Path):
        cat = tmp_path / "cat"
        cat.mkdir()
        Image.new("L", (3, 2), 255).save(cat / "body.png")
        (cat / "parts.json").write_text(json.dumps({"segments_info": [{"mask": "body.png", "text": "a cat"}]}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Layout.find(tmp_path) == Layout.find(cat) == [cat]
        assert Layout.read(cat).name == "cat"
        Image.new("L", (3, 2), 255).save(cat / "stray.png")
        for place in (cat, tmp_path):
            with pytest.warns(LayoutWarning, match=r"cat: pictures without a JSON are left out: 1 \(stray.png\)"):
                assert Layout.find(place) == [cat]

    def test_a_report_is_no_layout(self, tmp_path: Path):
        Layout(np.ones((1, 2, 3), dtype=bool), ("a",)).write(tmp_path / "b.json")
        (tmp_path / "check").mkdir()
        (tmp_path / "check" / "preflight.json").write_text("{}")
        assert Layout.find(tmp_path) == [tmp_path / "b.json"]
        with pytest.raises(LayoutError, match="no layout"):
            Layout.find(tmp_path / "check")
