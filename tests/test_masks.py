"""What counts as inside a mask, kind by kind, with areas known by construction."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning

SIDE = 64
INSIDE = np.zeros((SIDE, SIDE), bool)
INSIDE[10:40, 16:56] = True
OTHER = np.zeros((SIDE, SIDE), bool)
OTHER[45:60, 4:30] = True


def read(path: Path, **options) -> tuple[Layout, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = Layout.read(path, **options)
    return layout, [str(one.message) for one in caught if issubclass(one.category, LayoutWarning)]


def arrays(folder: Path, masks: np.ndarray) -> Path:
    np.savez(folder / "x.npz", masks=masks, captions=[f"region {n}" for n in range(len(masks))])
    return folder / "x.npz"


def picture(folder: Path, image: Image.Image, suffix: str = "png", **options) -> Path:
    image.save(folder / f"mask.{suffix}", **options)
    (folder / "x.json").write_text(json.dumps({"segments_info": [{"mask": f"mask.{suffix}", "text": "a"}]}))
    return folder / "x.json"


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def ramp(width: float) -> np.ndarray:
    """A soft disc, float [64, 64] in [0, 1], one half at radius 20; its edge is `width` pixels wide."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    return np.clip(0.5 + (20 - np.hypot(rows, columns)) / width, 0, 1)


SCALES = {
    "bool": INSIDE,
    "zero and one": INSIDE.astype(np.int64),
    "255": INSIDE.astype(np.uint8) * 255,
    "one and minus one": INSIDE * 2 - 1,
    "floats of one and minus one": np.where(INSIDE, 1.0, -1.0),
    "label 7 alone": INSIDE * 7,
    "probabilities": np.where(INSIDE, 0.9, 0.2),
    "half floats": np.where(INSIDE, 0.51, 0.49).astype(np.float16),
    "16 bits": np.where(INSIDE, 60000, 900).astype(np.uint16),
    "soft 8 bits": np.where(INSIDE, 200, 90).astype(np.uint8),
    "soft floats up to 255": np.where(INSIDE, 200.5, 90.25),
}


@pytest.mark.parametrize("kind", SCALES)
def test_arrays_of_each_scale_are_the_same_mask(kind: str, tmp_path: Path):
    layout, told = read(arrays(tmp_path, SCALES[kind][None]))
    assert (layout.masks[0] == INSIDE).all() and told == []


def test_soft_arrays_are_cut_where_they_are_one_half(tmp_path: Path):
    area = int((ramp(1) >= 0.5).sum())
    for width in (2, 9, 30):
        (mask,) = read(arrays(tmp_path, ramp(width)[None].astype(np.float32)))[0].masks
        assert mask.sum() == area
    layout, told = read(arrays(tmp_path, np.log(1e-6 + ramp(9)[None]) - np.log(1e-6 + 1 - ramp(9)[None])))
    assert layout.masks.sum() == area and len(told) == 1 and "logits" in told[0]


def test_probabilities_that_were_resized_overshoot_and_are_told(tmp_path: Path):
    small = Image.fromarray(INSIDE.astype(np.float32))
    big = np.asarray(small.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC))
    assert big.min() < 0 and big.max() > 1
    layout, told = read(arrays(tmp_path, big[None]))
    assert abs(layout.masks.sum() - 16 * INSIDE.sum()) < 100 and len(told) == 1 and "probabilities" in told[0]


def test_arrays_that_nothing_reads_are_told(tmp_path: Path):
    np.savez(tmp_path / "x.npz", masks=INSIDE[None], captions=["a"], prompt="a box", weights=[1.0])
    layout, told = read(tmp_path / "x.npz")
    assert layout.caption is None and len(told) == 1
    assert "'prompt' (did you mean caption?)" in told[0] and "'weights'" in told[0]


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ((INSIDE + 2 * OTHER)[None], "labels"),
        ((INSIDE + 2.0 * OTHER), "masks are float64"),
        ((INSIDE.astype(np.int16) - OTHER * 2)[None], "labels"),
        ((INSIDE * 70000 + OTHER * 5)[None], "labels"),
        ((INSIDE + 255 * OTHER).astype(np.uint8)[None], "labels"),
        ((INSIDE * 128 + 255 * OTHER).astype(np.uint8)[None], "labels"),
        (ramp(9)[None] * 3.7, "probabilities"),
        (ramp(9)[None] * 0.4, "one half, the greatest is 0.4"),
        (np.where(INSIDE, np.nan, 0)[None], "NaN"),
    ],
)
def test_arrays_without_a_rule_are_refused(masks: np.ndarray, said: str, tmp_path: Path):
    with pytest.raises(LayoutError, match=f"x.npz.*{said}"):
        read(arrays(tmp_path, masks))


def test_a_stack_may_number_its_masks(tmp_path: Path):
    layout, _ = read(arrays(tmp_path, np.stack([INSIDE * 1, OTHER * 2])))
    assert (layout.masks == np.stack([INSIDE, OTHER])).all()


def soft_picture(width: float) -> Image.Image:
    return grey((ramp(width) * 255).round())


PICTURES = {
    "1 bit": Image.fromarray(INSIDE),
    "0 and 1": grey(INSIDE),
    "grey edges": grey(INSIDE * 230.0 + 12),
    "red on black": Image.merge("RGB", [grey(INSIDE * 250), grey(INSIDE * 0), grey(INSIDE * 0)]),
    "one colour of a palette": grey(INSIDE).convert("P"),
    "white in transparency": Image.merge("LA", [grey(INSIDE * 0 + 255), grey(INSIDE * 255)]),
    "black on transparency": Image.merge("RGBA", [grey(INSIDE * 0)] * 3 + [grey(INSIDE * 255)]),
    "white and black, black transparent": Image.merge("LA", [grey(INSIDE * 255), grey(INSIDE * 155 + 100)]),
    "floats": Image.fromarray(np.where(INSIDE, 0.8, 0.3).astype(np.float32)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_each_kind_are_the_same_mask(kind: str, tmp_path: Path):
    image = PICTURES[kind]
    if image.mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0])
    layout, told = read(picture(tmp_path, image, "tif" if image.mode == "F" else "png"))
    assert (layout.masks[0] == INSIDE).all() and told == []


def test_soft_pictures_are_cut_at_one_half(tmp_path: Path):
    area = int((ramp(1) >= 0.5).sum())
    for image in (soft_picture(6), Image.merge("LA", [grey(INSIDE * 0 + 255), soft_picture(6)])):
        layout, told = read(picture(tmp_path, image))
        assert abs(layout.masks.sum() - area) <= 0.02 * area and told == []
    layout, told = read(picture(tmp_path, soft_picture(38)))
    assert abs(layout.masks.sum() - area) <= 0.02 * area and "one half" in told[0]
    noisy, told = read(picture(tmp_path, grey(INSIDE * 255), "jpg", quality=70))
    assert (noisy.masks[0] != INSIDE).sum() < 10 and told == []


def colourful(alpha: Image.Image | None = None) -> Image.Image:
    rows, columns = np.mgrid[:SIDE, :SIDE] * 4
    image = Image.fromarray(np.dstack([rows, columns, 255 - rows]).astype(np.uint8))
    if alpha is not None:
        image.putalpha(alpha)
    return image


def palette_of_labels() -> Image.Image:
    image = grey(INSIDE * 1 + OTHER * 2).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (grey(INSIDE * 1 + OTHER * 2), "labels"),
        (grey(INSIDE * 15 + OTHER * 255), "labels"),
        (grey(INSIDE * 100 + OTHER * 200), "labels"),
        (palette_of_labels(), "several colours"),
        (colourful(), "several colours"),
        (colourful(grey(INSIDE * 255)), "transparency"),
    ],
)
def test_pictures_that_are_no_mask_are_refused(image: Image.Image, said: str, tmp_path: Path):
    with pytest.raises(LayoutError, match=f"mask.png.*{said}"):
        read(picture(tmp_path, image))


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_pages_and_frames_are_refused(suffix: str, tmp_path: Path):
    path = picture(tmp_path, grey(INSIDE * 255), suffix, save_all=True, append_images=[grey(OTHER * 255)])
    with pytest.raises(LayoutError, match="several pages or frames"):
        read(path)


def test_masks_are_turned_as_their_exif_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise to see it upright
    layout, _ = read(picture(tmp_path, grey(INSIDE[:50] * 255), exif=exif))
    assert (layout.masks[0] == np.rot90(INSIDE[:50], -1)).all()


def color_map(folder: Path, image: Image.Image, colors: list) -> Path:
    image.save(folder / "x.png")
    (folder / "x.json").write_text(
        json.dumps({"segments_info": [{"color": color, "text": str(color)} for color in colors]})
    )
    return folder / "x.json"


def test_a_soft_brush_in_a_colour_map_ends_where_it_is_half_opaque(tmp_path: Path):
    red = Image.merge("RGBA", [grey(INSIDE * 0 + 200), grey(INSIDE * 0), grey(INSIDE * 0), soft_picture(24)])
    (mask,) = read(color_map(tmp_path, red, [[200, 0, 0]]))[0].masks
    assert mask.sum() == ((ramp(24) * 255).round() > 127).sum()


@pytest.mark.parametrize("snap_colors", [False, True, None])
@pytest.mark.parametrize(
    ("listed", "unlisted"), [([5, 5, 5], [6, 6, 6]), ([200, 0, 0], [222, 4, 0]), ([1, 1, 1], [250, 250, 250])]
)
def test_a_painted_colour_that_is_not_listed_stays_background(
    listed: list, unlisted: list, snap_colors: bool | None, tmp_path: Path
):
    pixels = np.where(INSIDE[..., None], listed, 0) + np.where(OTHER[..., None], unlisted, 0)
    layout, told = read(
        color_map(tmp_path, Image.fromarray(pixels.astype(np.uint8)), [listed]), snap_colors=snap_colors
    )
    assert (layout.masks[0] == INSIDE).all()
    assert len(told) == 1 and f"{unlisted} ({OTHER.sum()} pixels)" in told[0]


def test_labels_with_thin_parts_stay_apart(tmp_path: Path):
    """Numbers of labels differ by less than noise, and a crack between them fills no area."""
    labels = INSIDE * 1 + OTHER * 2
    labels[:, 60] = 3
    layout, told = read(color_map(tmp_path, grey(labels).convert("RGB"), [[1, 1, 1], [3, 3, 3]]), snap_colors=True)
    assert (layout.masks[0] == INSIDE).all() and layout.masks[1].sum() == SIDE and "[2, 2, 2]" in told[0]
    labels[:, 61] = 4
    layout, told = read(color_map(tmp_path, grey(labels).convert("RGB"), [[1, 1, 1], [3, 3, 3]]), snap_colors=True)
    assert (layout.masks[0] == INSIDE).all() and any("[2, 2, 2]" in line for line in told)


def test_snapping_still_merges_the_edges_of_smoothed_drawings(tmp_path: Path):
    big = Image.new("RGB", (4 * SIDE, 4 * SIDE))
    draw = ImageDraw.Draw(big)
    draw.ellipse((20, 20, 150, 150), fill=(255, 0, 0))
    draw.ellipse((120, 110, 240, 240), fill=(0, 0, 255))
    smooth = big.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    layout, told = read(color_map(tmp_path, smooth, [[255, 0, 0], [0, 0, 255]]))
    assert told == [] and layout.masks[0].sum() > 700 and layout.masks[1].sum() > 700


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_arrays_with_an_axis_of_channels_are_read(tmp_path, dtype):
    """SAM and torchvision give [N, 1, H, W]; more channels are no mask."""
    masks = np.stack([INSIDE, OTHER])[:, None].astype(dtype)
    assert np.array_equal(read(arrays(tmp_path, masks))[0].masks, masks[:, 0].astype(bool))
    for others in (np.repeat(masks, 3, axis=1), np.moveaxis(masks, 1, 3), masks[None]):
        with pytest.raises(LayoutError, match=r"x.npz: masks are .*save a bool array \[N, H, W\]"):
            read(arrays(tmp_path, others))
