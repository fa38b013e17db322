"""Pictures as people draw them: white paper, soft edges, JPEG, colours written as pickers show them, maps of labels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning
from seg2any.layout.draw import legend, overlay_picture

RED, BLUE, PINK, GREEN, WHITE = (200, 30, 30), (30, 60, 200), (250, 150, 150), (40, 160, 60), (255, 255, 255)
SIDE = 128


def drawing(paper: tuple[int, int, int] = WHITE, scale: int = 1, pink: bool = False) -> Image.Image:
    """Draw a red disc and a blue bar that meet, on paper; the green grass at the bottom touches the border."""
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), paper)
    draw = ImageDraw.Draw(image)

    def box(left: int, top: int, right: int, bottom: int) -> list[int]:
        return [scale * left, scale * top, scale * (right + 1) - 1, scale * (bottom + 1) - 1]

    draw.rectangle(box(0, 110, 127, 127), fill=GREEN)
    draw.ellipse(box(15, 15, 75, 75), fill=RED)
    draw.rectangle(box(60, 60, 115, 90), fill=BLUE)
    if pink:
        draw.rectangle(box(90, 10, 115, 35), fill=PINK)
    return image


def truth(image: Image.Image, colors: list) -> np.ndarray:
    exact = np.asarray(image)
    return np.stack([(exact == color).all(axis=2) for color in colors])


def save(folder: Path, image: Image.Image, colors: list, suffix: str = "png", **options) -> Path:
    image.save(folder / f"x.{suffix}", **options)
    regions = [{"color": color, "text": f"thing {n}"} for n, color in enumerate(colors)]
    (folder / "x.json").write_text(json.dumps({"segments_info": regions}))
    return folder / "x.json"


def read(path: Path, snap_colors: bool | None = None) -> tuple[Layout, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = Layout.read(path, snap_colors)
    return layout, [str(one.message) for one in caught if issubclass(one.category, LayoutWarning)]


def iou(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (found & wanted).sum(axis=(1, 2)) / (found | wanted).sum(axis=(1, 2))


@pytest.mark.parametrize("paper", [WHITE, (253, 246, 227)])
def test_paper_is_a_note_and_another_unlisted_colour_a_warning(tmp_path: Path, paper: tuple):
    image = drawing(paper)
    layout, told = read(save(tmp_path, image, [RED, BLUE, GREEN]))
    border = 2 * (128 + 126)
    share = 1 - (128 + 2 * 17) / border  # without the grass
    assert told == [] and layout.notes == (
        f"{list(paper)} fills {share:.0%} of the border: it is paper, so background",
    )
    assert (layout.masks == truth(image, [RED, BLUE, GREEN])).all()
    layout, told = read(save(tmp_path, image, [RED, GREEN]))
    assert len(told) == 1 and f"{list(BLUE)}" in told[0] and "not in the JSON" in told[0] and len(layout.notes) == 1


def test_an_unlisted_region_that_fills_half_of_the_border_or_less_is_no_paper(tmp_path: Path):
    image = Image.new("RGB", (SIDE, SIDE), RED)
    ImageDraw.Draw(image).rectangle((0, 0, 127, 62), fill=WHITE)  # 126 of 254 rows and columns of half the border
    layout, told = read(save(tmp_path, image, [RED]))
    assert len(told) == 1 and "[255, 255, 255]" in told[0] and layout.notes == ()


@pytest.mark.parametrize("pink", [False, True])
@pytest.mark.parametrize("edge", ["antialiased", "lanczos", "brush"])
def test_soft_edges_are_snapped_and_counted(tmp_path: Path, edge: str, pink: bool):
    colors = [RED, BLUE, GREEN, *([PINK] if pink else [])]
    exact = drawing(pink=pink)
    if edge == "brush":
        image = exact.filter(ImageFilter.GaussianBlur(2))
    else:
        resampling = Image.Resampling.BOX if edge == "antialiased" else Image.Resampling.LANCZOS
        image = drawing(scale=4, pink=pink).resize((SIDE, SIDE), resampling)
    path = save(tmp_path, image, colors)
    layout, told = read(path)
    assert told == [] and iou(layout.masks, truth(exact, colors)).min() > 0.95
    if pink:  # the edge of red on white passes pink, but no pink is near it
        assert not layout.masks[3, 10:80, 10:80].any()
    unlisted = ~truth(image, [*colors, WHITE]).any(axis=0)
    note = next(note for note in layout.notes if "went to the nearest colour" in note)
    n_colors = len(np.unique(np.asarray(image)[unlisted], axis=0))
    assert note.startswith(f"{unlisted.sum()} pixels in {n_colors} colours") and "distance of" in note
    _, told = read(path, snap_colors=False)
    assert len(told) == 1 and "--snap_colors" in told[0]


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "jpg to png"])
def test_lossy_pictures_are_snapped(tmp_path: Path, suffix: str, quality: int):
    colors, exact = [RED, BLUE, GREEN], drawing()
    if suffix == "jpg to png":
        exact.save(tmp_path / "y.jpg", quality=quality)
        path = save(tmp_path, Image.open(tmp_path / "y.jpg"), colors)
    else:
        path = save(tmp_path, exact, colors, suffix, quality=quality)
    layout, told = read(path)
    assert told == [] and iou(layout.masks, truth(exact, colors)).min() > 0.93
    assert len(layout.notes) == 2 and "paper" in layout.notes[1]


def gradient() -> Image.Image:
    """Draw a bar that goes from red to blue."""
    image, part = drawing(), np.linspace(0, 1, 100)[None, :, None]
    bar = (np.array(RED) * (1 - part) + np.array(BLUE) * part).round().astype(np.uint8).repeat(14, axis=0)
    image.paste(Image.fromarray(bar), (14, 94))
    return image


def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = drawing()
    image.paste(Image.fromarray(noise).resize((100, 100), Image.Resampling.BICUBIC), (14, 14))
    image.paste(drawing().crop((0, 0, 60, 60)), (0, 0))
    return image


def outlined() -> Image.Image:
    """Draw thin lines of an unlisted colour that is no mixture."""
    image = drawing()
    ImageDraw.Draw(image).rectangle((85, 10, 110, 40), outline=(230, 0, 230), width=2)
    return image


@pytest.mark.parametrize("make", [gradient, photo, outlined])
def test_what_is_no_mixture_or_no_edge_is_not_snapped(tmp_path: Path, make):
    layout, told = read(save(tmp_path, make(), [RED, GREEN, BLUE]))
    assert any("--snap_colors" in line for line in told) and not any("nearest colour" in note for note in layout.notes)


def test_a_picture_of_many_colours_is_no_drawing_but_can_be_snapped(tmp_path: Path):
    image = drawing(scale=4).resize((SIDE, SIDE), Image.Resampling.BOX)
    for n in range(64):  # colours that are 85 apart, some of them near to a listed one
        x, y = n % 22 * 5 + 4, n // 22 * 4 + 96
        image.paste((85 * (n % 4), 85 * (n // 4 % 4), 85 * (n // 16)), (x, y, x + 3, y + 3))
    path = save(tmp_path, image, [RED, BLUE, GREEN])
    assert any("--snap_colors" in line for line in read(path)[1])
    layout, _ = read(path, snap_colors=True)
    assert iou(layout.masks, truth(drawing(), [RED, BLUE, GREEN])).min() > 0.95


def test_a_wrong_colour_is_not_snapped_to_a_flat_one(tmp_path: Path):
    image = drawing(scale=4).resize((SIDE, SIDE), Image.Resampling.BOX)
    near = (RED[0] + 15, RED[1], RED[2])
    with pytest.raises(LayoutError, match=r"color \[215, 30, 30\] is not in x.png; the nearest is \[200, 30, 30\]"):
        read(save(tmp_path, image, [near, BLUE, GREEN]))


@pytest.mark.parametrize(
    ("written", "color"),
    [
        ("#c81e1e", (200, 30, 30)),
        ("#C81E1E", (200, 30, 30)),
        ("c81e1e", (200, 30, 30)),
        ("#f00", (255, 0, 0)),
        ("teal", (0, 128, 128)),
        ("RebeccaPurple", (102, 51, 153)),
        (" Lime ", (0, 255, 0)),
    ],
)
def test_colours_are_written_as_pickers_and_css_do(tmp_path: Path, written: str, color: tuple):
    image = Image.new("RGB", (32, 32), WHITE)
    ImageDraw.Draw(image).rectangle((8, 8, 20, 20), fill=color)
    layout, told = read(save(tmp_path, image, [written]))
    assert told == [] and layout.colors == (color,) and layout.masks.sum() == 13 * 13


def test_legend_and_overlay_have_the_colours_that_were_drawn(tmp_path: Path):
    colors = [RED, BLUE, GREEN]
    layout, _ = read(save(tmp_path, drawing(), colors))
    assert layout.colors == tuple(colors)
    swatches = {tuple(pixel) for pixel in np.asarray(legend(layout, 400)).reshape(-1, 3)}
    assert swatches >= {*colors}
    overlay = np.asarray(overlay_picture(layout, layout.size)).astype(int)
    assert (overlay[30, 40] == [(200 + 96) / 2, (30 + 96) / 2, (30 + 96) / 2]).all()  # half red, half grey


def save_labels(folder: Path, label_map: np.ndarray, captions: list, **arrays) -> Path:
    np.savez(folder / "x.npz", masks=label_map, captions=captions, **arrays)
    return folder / "x.npz"


LABELS = np.array([[0, 1, 1], [2, 2, 9]])


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_a_map_of_labels_is_a_layout(tmp_path: Path, kind: type):
    label_map = np.where(LABELS == 9, 0, LABELS).astype(kind)
    layout, told = read(save_labels(tmp_path, label_map, ["a", "b"]))
    assert told == [] and layout.captions == ("a", "b")
    assert (layout.masks == [label_map == 1, label_map == 2]).all()
    layout, _ = read(save_labels(tmp_path, LABELS.astype(kind), ["nine", "nothing", "a", "b"], labels=[9, 0, 1, 2]))
    assert (layout.masks == [LABELS == 9, LABELS == 0, LABELS == 1, LABELS == 2]).all()


@pytest.mark.parametrize(
    ("captions", "arrays", "message"),
    [
        (["a", "b"], {}, "9 has no caption"),
        (["a", "b", "c"], {"labels": [1, 2]}, "labels are int64 .* save 3 different whole numbers"),
        (["a", "b", "c"], {"labels": [1, 2, 2]}, "save 3 different whole numbers"),
        (["a", "b", "c"], {"labels": ["1", "2", "9"]}, "save 3 different whole numbers"),
        (["a", "b", "c", "d"], {"labels": [1, 2, 9, 5]}, r"masks\[3\] has no pixel"),
    ],
)
def test_labels_that_do_not_fit_the_captions(tmp_path: Path, captions: list, arrays: dict, message: str):
    with pytest.raises(LayoutError, match=message):
        read(save_labels(tmp_path, LABELS, captions, **arrays))


def test_labels_without_a_map_are_refused(tmp_path: Path):
    with pytest.raises(LayoutError, match="labels belong to masks of one map"):
        read(save_labels(tmp_path, np.ones((1, 2, 3), bool), ["a"], labels=[1]))
