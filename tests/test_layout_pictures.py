"""Test regions in pictures and run lengths: colour maps, folders of masks, COCO's RLE."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.rle import decode_rle
from tests.test_layout import (
    BLUE,
    GREEN,
    RED,
    random_layout,
    read_without_warning,
    same,
    save_example,
    two_regions,
)


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
        with pytest.warns(LayoutWarning, match="--snap_colors"):
            Layout.read(path, snap_colors=False)
        snapped = read_without_warning(path)
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
            Layout.read(path, snap_colors=False)
        snapped = read_without_warning(path)
        expected = np.stack([(truth == color).all(axis=2) for color in (RED, BLUE)])
        assert (snapped.masks != expected).mean() < 0.003

    def test_a_narrow_black_background_survives_jpeg(self, tmp_path: Path):
        """No nine of 20 black pixels between red and blue are equal, but none may join either."""
        truth = np.zeros((40, 60, 3), dtype=np.uint8)
        truth[:, :20], truth[:, 40:] = RED, BLUE
        path = save_example(tmp_path, truth, [RED, BLUE])
        (tmp_path / "example.png").unlink()
        Image.fromarray(truth).save(tmp_path / "example.jpg", quality=60)
        masks = Layout.read(path, snap_colors=True).masks
        assert (masks != np.stack([(truth == color).all(axis=2) for color in (RED, BLUE)])).mean() < 0.02

    def test_suffixes_in_capitals(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        expected = read_without_warning(path)
        (tmp_path / "example.png").rename(tmp_path / "example.PNG")
        path.rename(tmp_path / "example.JSON")
        for name in ("example.PNG", "example.JSON", "."):
            assert same(read_without_warning(tmp_path / name), expected)

    def test_interlaced_and_16_bit_colours(self, tmp_path: Path):
        """The files are written by hand, following the PNG specification, because Pillow cannot write them."""
        path, pixels = save_example(tmp_path, two_regions(), [RED, BLUE]), two_regions()
        expected = read_without_warning(path)
        deep = b"".join(b"\0" + row.tobytes() for row in (pixels.astype(">u2") * 257))
        steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        passes = [pixels[y::dy, x::dx] for x, y, dx, dy in steps]
        woven = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
        for bits, interlaced, data in ((16, 0, deep), (8, 1, woven)):
            header = struct.pack(">IIBBBBB", 12, 8, bits, 2, 0, 0, interlaced)
            chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
            body = b"".join(
                struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
                for kind, content in chunks
            )
            (tmp_path / "example.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
            assert same(read_without_warning(path), expected)

    def test_snapping_changes_nothing_in_a_clean_map(self, tmp_path: Path):
        layout = random_layout(np.random.default_rng(0), 20, overlapping=False)
        layout.write(tmp_path / "x.json")
        assert same(read_without_warning(tmp_path / "x.json", snap_colors=True), layout)

    @pytest.mark.parametrize(
        ("colors", "message"),
        [
            ([RED, GREEN], r"segments_info\[1\]: color \[0, 255, 0\] is not in example.png; correct the colour"),
            ([RED, [1, 0, 250]], r"\[1, 0, 250\] is not in example.png; the nearest is \[0, 0, 255\] \(32 pixels\)"),
            ([RED, BLUE, RED], r"segments_info\[2\]: color \[255, 0, 0\] .* segments_info\[0\]"),
            ([[255, 0]], r"segments_info\[0\]: color is \[255, 0\]; write .* or \[red, green, blue\]"),
            ([[256, 0, 0]], "whole numbers from 0 to 255"),
            ([[255.0, 0, 0]], "whole numbers from 0 to 255"),
            ([[True, 0, 0]], "whole numbers from 0 to 255"),
            (["redd"], r"color is 'redd' \(did you mean \"red\"\?\); write \"#c81e1e\""),
            (["#c81e1"], "color is '#c81e1'; write"),
            (["#c81e1e80"], "color is '#c81e1e80'; write"),
            (["#f00", [255, 0, 0]], r"segments_info\[1\]: color \[255, 0, 0\] is also that of segments_info\[0\]"),
            ([None], "color is None"),
        ],
    )
    def test_wrong_colours(self, tmp_path: Path, colors: list, message: str):
        with pytest.raises(LayoutError, match=message):
            Layout.read(save_example(tmp_path, two_regions(), colors))

    def test_sixteen_bit_and_transparent_maps_are_refused(self, tmp_path: Path):
        path = save_example(tmp_path, two_regions(), [RED, BLUE])
        Image.fromarray(np.ones((8, 12), dtype=np.uint16)).save(tmp_path / "example.png")
        with pytest.raises(LayoutError, match="8 bits"):
            Layout.read(path)
        Image.new("RGBA", (12, 8)).save(tmp_path / "example.png")
        with pytest.raises(LayoutError, match="transparent"):
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
        with pytest.raises(LayoutError, match="two.png: mask "):
            Layout.read(folder)
        (folder / "two.png").unlink()
        with pytest.raises(LayoutError, match="two.png: "):
            Layout.read(folder)
        (folder / "more.json").write_text("{}")
        with pytest.raises(LayoutError, match="layout.json, more.json"):
            Layout.read(folder)


def encode_rle(mask: np.ndarray, compressed: bool) -> dict:
    """Encode a mask pixel by pixel and number by number, following the description of the format."""
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
            {"segmentation": encode_rle(mask, True), "caption": f"c{n}", "area": int(mask.sum())}
            for n, mask in enumerate(masks)
        ]
        document = {"image": {"width": 5, "height": 7}, "annotations": annotations, "caption": "all"}
        (tmp_path / "sa_1.json").write_text(json.dumps(document))
        layout = read_without_warning(tmp_path / "sa_1.json")
        assert (layout.masks == masks).all() and layout.captions == ("c0", "c1", "c2") and layout.caption == "all"

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ([[1, 2, 3, 4]], "3 points"),
            ([[1, 2, 3, 4, 5, 6]], "size of the image"),
            ({"counts": [4]}, r"size is None; write \[height, width\]"),
            ({"size": [2, -2], "counts": [4]}, "size is"),
            ({"size": [2, 2.0], "counts": [4]}, "size is"),
            ({"size": [2, 2], "counts": [1, 2]}, "cover 3 pixels, .* 2x2 has 4"),
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
