"""Layouts in memory and on disk: every format, and one clear line for every problem."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout, LayoutError, LayoutWarning
from seg2any.layout_files.color_map import region_colors
from seg2any.layout_files.rle import decode_rle
from tests.golden_root import REPOSITORY

RED, BLUE, GREEN, WHITE = [255, 0, 0], [0, 0, 255], [0, 255, 0], [255, 255, 255]


def two_regions() -> np.ndarray:
    """uint8 [8, 12, 3]: red on the left, blue on the right, black between."""
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, :4], pixels[:, 8:] = RED, BLUE
    return pixels


def save_example(folder: Path, pixels: np.ndarray, colors: list, name: str = "example", **document) -> Path:
    """NAME.png and NAME.json with one region per colour, called `thing 0`, `thing 1`, ..."""
    regions = [{"color": color, "text": f"thing {n}"} for n, color in enumerate(colors)]
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps({"segments_info": regions, **document}))
    return folder / f"{name}.json"


def read_without_warning(path: Path, snap_colors: bool = False) -> Layout:
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

    def test_63_regions_fit_and_64_do_not(self):
        Layout(np.zeros((63, 2, 2), dtype=bool), ["a"] * 63)
        with pytest.raises(LayoutError, match="64 regions, the most is 63"):
            Layout(np.zeros((64, 2, 2), dtype=bool), ["a"] * 64)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"masks": np.zeros((1, 2, 2))}, "masks are float64"),
            ({"masks": np.zeros((2, 2), dtype=bool)}, r"masks are bool \[2, 2\]"),
            ({"masks": np.zeros((1, 0, 2), dtype=bool)}, "masks are"),
            ({"masks": [[True]]}, "masks are list"),
            ({"captions": ("a", "b")}, "1 masks but 2 captions"),
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

    @pytest.mark.parametrize("n", [1, 63])
    def test_npz(self, tmp_path: Path, n: int):
        layout = random_layout(np.random.default_rng(n), n, overlapping=True)
        layout.write(tmp_path / "x.npz")
        assert same(read_without_warning(tmp_path / "x.npz"), layout)

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
        with pytest.raises(LayoutError, match="region 1 has no pixel"):
            overlapping.flattened().write(tmp_path / "x.json")
        with pytest.raises(LayoutError, match="written as"):
            overlapping.write(tmp_path / "x.gif")
        assert not list(tmp_path.iterdir())

    def test_region_colours_differ_and_none_is_black(self):
        colors = region_colors(63)
        assert len(set(colors)) == 63 and (0, 0, 0) not in colors


class TestColourMap:
    def test_regions_come_in_json_order(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [BLUE, RED], caption="both", seed=7)
        layout = read_without_warning(path)
        assert layout.captions == ("thing 0", "thing 1")
        assert (layout.caption, layout.seed, layout.name, layout.size) == ("both", 7, "example", (8, 12))
        assert layout.masks[0].nonzero()[1].min() == 8 and layout.masks[1].nonzero()[1].max() == 3
        assert layout.masks.sum(axis=(1, 2)).tolist() == [32, 32]

    @pytest.mark.parametrize("mode", ["RGBA", "P", "PA", "L"])
    def test_other_pixel_formats_give_the_same_masks(self, tmp_path: Path, mode: str):
        image = Image.fromarray(two_regions())
        colors = [RED, BLUE]
        if mode == "L":
            image = image.convert("L")
            colors = [[int(np.asarray(image)[0, x])] * 3 for x in (0, -1)]
        elif mode == "PA":
            image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
            image.info["transparency"] = 0 if image.getpixel((5, 0)) == 0 else image.getpixel((5, 0))
        else:
            image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
        path = save_example(tmp_path, two_regions(), colors)
        image.save(tmp_path / "example.png", **({"transparency": image.info["transparency"]} if mode == "PA" else {}))
        masks = read_without_warning(path).masks
        assert masks[0].sum() == masks[1].sum() == 32 and masks[0, :, :4].all() and masks[1, :, 8:].all()

    def test_transparent_pixels_are_background(self, tmp_path: Path):
        pixels = np.dstack([two_regions(), np.full((8, 12), 255, dtype=np.uint8)])
        pixels[:3, :, 3] = 0
        masks = read_without_warning(save_example(tmp_path, pixels, [RED, BLUE])).masks
        assert not masks[:, :3].any() and masks.sum() == 2 * 5 * 4

    def test_black_may_be_a_region(self, tmp_path: Path):
        masks = read_without_warning(save_example(tmp_path, two_regions(), [[0, 0, 0], RED, BLUE])).masks
        assert masks[0, :, 4:8].all() and masks[0].sum() == 32

    def test_unlisted_colour_is_background_with_a_warning_that_counts(self, tmp_path: Path):
        pixels = two_regions()
        pixels[2:5, 5:8] = GREEN
        with pytest.warns(LayoutWarning, match=r"example.png: colour \[0, 255, 0\] \(9 pixels\) is not in the JSON"):
            layout = Layout.read(save_example(tmp_path, pixels, [RED, BLUE]))
        assert layout.background[2:5, 5:8].all()

    def test_soft_edges_are_reported_and_merged(self, tmp_path: Path):
        truth = np.zeros((64, 64, 3), dtype=np.uint8)
        truth[8:40, 8:40], truth[30:60, 20:60] = RED, BLUE
        big = Image.fromarray(truth).resize((256, 256), Image.Resampling.BICUBIC)
        path = save_example(tmp_path, np.asarray(big), [RED, BLUE])
        with pytest.warns(LayoutWarning, match=r"pixels in \d+ colours .* soft edges or JPEG noise .* --snap_colors"):
            Layout.read(path)
        snapped = read_without_warning(path, snap_colors=True)
        exact = np.asarray(Image.fromarray(truth).resize((256, 256), Image.Resampling.NEAREST))
        expected = np.stack([(exact == color).all(axis=2) for color in (RED, BLUE)])
        assert (snapped.masks != expected).mean() < 0.01

    def test_jpeg_noise_is_merged(self, tmp_path: Path):
        truth = np.full((64, 64, 3), 255, dtype=np.uint8)
        truth[8:40, 8:40], truth[40:60, 20:60] = RED, BLUE
        path = save_example(tmp_path, truth, [RED, BLUE])
        Image.fromarray(truth).save(tmp_path / "example.jpg", quality=90, subsampling=0)
        (tmp_path / "example.png").unlink()
        with pytest.raises(
            LayoutError, match=r"color \[255, 0, 0\] is not in example.jpg; the nearest is .* --snap_colors"
        ):
            Layout.read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the white background is unlisted
            snapped = Layout.read(path, snap_colors=True)
        expected = np.stack([(truth == color).all(axis=2) for color in (RED, BLUE)])
        assert (snapped.masks != expected).mean() < 0.003

    def test_snapping_changes_nothing_in_a_clean_map(self, tmp_path: Path):
        layout = random_layout(np.random.default_rng(0), 20, overlapping=False)
        layout.write(tmp_path / "x.json")
        assert same(read_without_warning(tmp_path / "x.json", snap_colors=True), layout)

    @pytest.mark.parametrize(
        ("colors", "message"),
        [
            ([RED, GREEN], r"segments_info\[1\]: color \[0, 255, 0\] is not in example.png; correct the colour"),
            ([RED, [1, 0, 250]], r"\[1, 0, 250\] is not in example.png; the nearest is \[0, 0, 255\] \(32 pixels\)"),
            ([RED, BLUE, RED], r"segments_info\[2\]: color \[255, 0, 0\] is already that of segments_info\[0\]"),
            ([[255, 0]], r"segments_info\[0\]: color is \[255, 0\]; write \[red, green, blue\]"),
            ([[256, 0, 0]], "whole numbers from 0 to 255"),
            ([[255.0, 0, 0]], "whole numbers from 0 to 255"),
            ([[True, 0, 0]], "whole numbers from 0 to 255"),
            (["red"], "color is 'red'"),
            ([None], "color is None"),
        ],
    )
    def test_wrong_colours(self, tmp_path: Path, colors: list, message: str):
        with pytest.raises(LayoutError, match=message):
            Layout.read(save_example(tmp_path, two_regions(), colors))

    def test_sixteen_bit_and_transparent_maps_are_refused(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        Image.fromarray(np.ones((8, 12), dtype=np.uint16)).save(tmp_path / "example.png")
        with pytest.raises(LayoutError, match="8 bits per channel"):
            Layout.read(path)
        Image.new("RGBA", (12, 8)).save(tmp_path / "example.png")
        with pytest.raises(LayoutError, match="transparent all over"):
            Layout.read(path)


class TestMaskFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "cats"
        folder.mkdir()
        masks = np.zeros((2, 6, 9), dtype=bool)
        masks[0, :4], masks[1, 2:, 3:] = True, True
        Image.fromarray(masks[0]).save(folder / "one.png")  # 1 bit
        Image.fromarray(masks[1].astype(np.uint16) * 40000).save(folder / "two.png")  # 16 bits
        self.masks = masks
        self.write(folder, [{"mask": "one.png", "text": "below"}, {"mask": "two.png", "text": "above"}])
        return folder

    def write(self, folder: Path, regions: list) -> None:
        (folder / "layout.json").write_text(json.dumps({"caption": "all", "segments_info": regions}))

    def test_masks_may_overlap(self, folder: Path):
        for path in (folder, folder / "layout.json"):
            layout = read_without_warning(path)
            assert (layout.masks == self.masks).all() and layout.captions == ("below", "above")
        assert Layout.read(folder).name == "cats"

    @pytest.mark.parametrize("level", [1, 255])
    def test_grey_masks_of_any_level(self, folder: Path, level: int):
        Image.fromarray(self.masks[0].astype(np.uint8) * level).save(folder / "one.png")
        assert (read_without_warning(folder).masks == self.masks).all()

    def test_soft_masks_are_cut_at_half(self, folder: Path):
        Image.fromarray((self.masks[0] * 200 + 20).astype(np.uint8)).save(folder / "one.png")
        assert (read_without_warning(folder).masks == self.masks).all()

    def test_all_three_kinds_of_regions_mix(self, folder: Path):
        pixels = np.zeros((6, 9, 3), dtype=np.uint8)
        pixels[0] = RED
        Image.fromarray(pixels).save(folder / "layout.png")
        rle = {"size": [6, 9], "counts": [0, 6, 48]}
        self.write(
            folder,
            [
                {"segmentation": rle, "text": "left"},
                {"mask": "one.png", "text": "middle"},
                {"color": RED, "text": "top"},
            ],
        )
        masks = read_without_warning(folder).masks
        assert masks[0].nonzero()[1].max() == 0 and (masks[1] == self.masks[0]).all() and masks[2].sum() == 9

    def test_problems(self, folder: Path):
        Image.new("L", (9, 5), 255).save(folder / "two.png")
        with pytest.raises(LayoutError, match=r"segments_info\[1\]: mask is 9x5 but that of segments_info\[0\] is 9x6"):
            Layout.read(folder)
        Image.new("L", (9, 6)).save(folder / "two.png")
        with pytest.raises(LayoutError, match="two.png: mask is black all over"):
            Layout.read(folder)
        (folder / "two.png").unlink()
        with pytest.raises(LayoutError, match="two.png: image is missing"):
            Layout.read(folder)
        (folder / "more.json").write_text("{}")
        with pytest.raises(LayoutError, match="holds 2 JSON files"):
            Layout.read(folder)


def encode_rle(mask: np.ndarray, compressed: bool) -> dict:
    """Run lengths, written out pixel by pixel and number by number, as the format's description says."""
    counts, current, run = [], False, 0
    for value in mask.T.reshape(-1):
        if value != current:
            counts.append(run)
            current, run = value, 0
        run += 1
    counts.append(run)
    if compressed:
        text = ""
        for n, run in enumerate(counts):
            value = run - counts[n - 2] if n > 2 else run
            more = True
            while more:
                bits, value = value & 31, value >> 5
                more = not (value == 0 and not bits & 16 or value == -1 and bits & 16)
                text += chr((bits | 32 if more else bits) + 48)
        counts = text
    return {"size": list(mask.shape), "counts": counts}


class TestRunLengths:
    def test_strings_written_by_pycocotools(self):
        box = np.zeros((9, 10), dtype=bool)
        box[2:6, 2:6] = True
        y, x = np.mgrid[:20, :30]
        shapes = ((y - 9) ** 2 + (x - 12) ** 2 < 50) | ((y > 15) & (x > 20))
        recorded = {"d04500000R1": box, "]31`06L2N2N2O000O20N10001N2N2N4Jn03RO000000000000000": shapes}
        for counts, mask in recorded.items():
            assert (decode_rle("here", {"size": list(mask.shape), "counts": counts}) == mask).all()

    @pytest.mark.parametrize("compressed", [False, True])
    def test_round_trip_of_random_masks(self, compressed: bool):
        rng = np.random.default_rng(5)
        for _ in range(200):
            mask = rng.random(rng.integers(1, 40, size=2)) < rng.random()
            mask[tuple(rng.integers(0, mask.shape))] = True
            assert (decode_rle("here", encode_rle(mask, compressed)) == mask).all()

    def test_long_runs(self):
        mask = np.zeros((900, 1100), dtype=bool)
        mask[450:, 300:800] = True
        assert (decode_rle("here", encode_rle(mask, compressed=True)) == mask).all()

    def test_sa_1b_file(self, tmp_path: Path):
        masks = np.random.default_rng(1).random((3, 7, 5)) < 0.5
        annotations = [
            {"segmentation": encode_rle(mask, True), "caption": f"c{n}", "area": 3} for n, mask in enumerate(masks)
        ]
        document = {"image": {"width": 5, "height": 7}, "annotations": annotations, "caption": "all"}
        (tmp_path / "sa_1.json").write_text(json.dumps(document))
        layout = read_without_warning(tmp_path / "sa_1.json")
        assert (layout.masks == masks).all() and layout.captions == ("c0", "c1", "c2") and layout.caption == "all"

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ([[1, 2, 3, 4]], "polygons are not read"),
            ({"counts": [4]}, r"size is None; write \[height, width\]"),
            ({"size": [2, -2], "counts": [4]}, "size is"),
            ({"size": [2, 2.0], "counts": [4]}, "size is"),
            ({"size": [2, 2], "counts": [1, 2]}, "cover 3 pixels, its size 2x2 has 4"),
            ({"size": [2, 2], "counts": [1, -1, 4]}, "counts are"),
            ({"size": [2, 2], "counts": None}, "counts are None"),
            ({"size": [2, 2], "counts": ""}, "damaged"),
            ({"size": [2, 2], "counts": "~~~"}, "damaged"),
            ({"size": [2, 2], "counts": "ooooooooooooo"}, "damaged"),
            ({"size": [2, 2], "counts": "\u00e9"}, "damaged|cover"),
            ({"size": [2, 2], "counts": [4]}, "has no pixel"),
            ({"size": [100000, 100000], "counts": [0, 10**10]}, "megapixels"),
        ],
    )
    def test_problems(self, tmp_path: Path, segmentation: object, message: str):
        (tmp_path / "x.json").write_text(json.dumps({"segments_info": [{"segmentation": segmentation, "text": "a"}]}))
        with pytest.raises(LayoutError, match=rf"x.json: segments_info\[0\]: .*({message})"):
            Layout.read(tmp_path / "x.json")


class TestNpz:
    GOOD = {"masks": np.ones((1, 2, 3), dtype=bool), "captions": np.array(["a"])}

    def test_numbers_count_as_masks(self, tmp_path: Path):
        np.savez(tmp_path / "x.npz", masks=np.array([[[0, 7]]]), captions=["a"], caption="b", seed=3)
        layout = read_without_warning(tmp_path / "x.npz")
        assert layout.masks.tolist() == [[[False, True]]] and (layout.caption, layout.seed) == ("b", 3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"masks": None}, "array masks is missing"),
            ({"captions": None}, "array captions is missing"),
            ({"masks": np.ones((2, 3), dtype=bool)}, "masks are bool"),
            ({"masks": np.array(["a"])}, "masks are"),
            ({"masks": np.zeros((0, 2, 3), dtype=bool)}, "at least one region"),
            ({"masks": np.zeros((1, 2, 3), dtype=bool)}, r"masks\[0\] has no pixel"),
            ({"captions": np.array(["a", "b"])}, "1 masks but 2 captions"),
            ({"captions": np.array([1])}, "captions are int64"),
            ({"captions": np.array([{}], dtype=object)}, "cannot be read as npz"),
            ({"seed": np.array(0.5)}, "seed is 0.5"),
            ({"seed": np.array([1, 2])}, "seed has shape"),
            ({"seed": np.array(np.nan)}, "seed is nan"),
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
            ("[]", "holds a list"),
            ("null", "holds null"),
            ("3", "holds a number"),
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
            ('{"seed": -3, GOOD}', "seed is -3"),
            ('{"seed": 3.5, GOOD}', "seed is 3.5"),
            ('{"seed": 1e999, GOOD}', "seed is inf"),
            ('{"seed": "3", GOOD}', "seed is '3'"),
            ('{"caption": "", GOOD}', "caption is empty"),
            ('{"caption": ["a"], GOOD}', r"caption is \['a'\]"),
            ('{"images": [{}, {}], GOOD}', "images: holds 2 images"),
        ],
    )
    def test_problems(self, tmp_path: Path, text: str, message: str):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        path.write_text(text.replace("GOOD", '"segments_info": [{"color": [255, 0, 0], "text": "a"}]'))
        with pytest.raises(LayoutError, match=f"example.json: .*({message})") as caught:
            Layout.read(path)
        assert "\n" not in str(caught.value)

    def test_too_many_regions_are_refused_by_the_json(self, tmp_path: Path):
        with pytest.raises(LayoutError, match="example.json: segments_info has 64 regions, the most is 63"):
            Layout.read(save_example(tmp_path, two_regions(), [[n, 0, 0] for n in range(64)]))

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
        with pytest.raises(LayoutError, match="not a kind of file that holds a layout"):
            Layout.read(tmp_path / "example.txt")
        whole = (tmp_path / "example.png").read_bytes()
        (tmp_path / "example.png").write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(LayoutError, match="example.png: cannot be read as an image"):
            Layout.read(path)
        (tmp_path / "example.png").write_bytes(b"not a picture")
        with pytest.raises(LayoutError, match="example.png: cannot be read as an image"):
            Layout.read(path)
        (tmp_path / "example.png").unlink()
        with pytest.raises(LayoutError, match="example.png: image is missing"):
            Layout.read(path)
        Image.fromarray(two_regions()).save(tmp_path / "alone.png")
        with pytest.raises(LayoutError, match="alone.json is missing beside it"):
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
        (tmp_path / "notes.txt").write_text("")
        (tmp_path / ".hidden.json").write_text("")
        with pytest.warns(LayoutWarning, match=r"folders with several JSON files are left out: 1 \(collection\)"):
            found = Layout.find(tmp_path)
        assert [path.name for path in found] == ["a.npz", "b.json", "folder"]
        assert [Layout.read(path).name for path in found] == ["a", "b", "folder"]
        assert Layout.find(tmp_path / "b.json") == [tmp_path / "b.json"]
        (tmp_path / "empty").mkdir()
        with pytest.raises(LayoutError, match="holds no layout"):
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
        with pytest.warns(LayoutWarning, match=r"pictures without a JSON are left out: 1 \(stray.png\)"):
            assert Layout.find(cat) == [cat]

    def test_a_report_is_no_layout(self, tmp_path: Path):
        Layout(np.ones((1, 2, 3), dtype=bool), ("a",)).write(tmp_path / "b.json")
        (tmp_path / "check").mkdir()
        (tmp_path / "check" / "preflight.json").write_text("{}")
        assert Layout.find(tmp_path) == [tmp_path / "b.json"]
        with pytest.raises(LayoutError, match="holds no layout"):
            Layout.find(tmp_path / "check")
