"""The shapes judge: verdicts on images whose faults the renderer put there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from seg2any.data.shapes import Scene, ShapesDataset
from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, LETTERS, Figure
from seg2any.evaluation.shapes.drawn import Attributes
from seg2any.evaluation.shapes.judge import Verdict, judge, visible
from seg2any.evaluation.shapes.results import OF_IMAGE, OF_REGION, results
from seg2any.layout import Layout
from seg2any.system.errors import UserError

pytestmark = pytest.mark.slow

SCENES = [ShapesDataset("test", 8).scene(index) for index in range(8)]
FIGURES = sum(len(scene.figures) for scene in SCENES)


def like_a_decoder(image: np.ndarray) -> np.ndarray:
    """Add blur and noise of about the strength of a small autoencoder."""
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.0) + noise, 0, 255).astype(np.uint8)


def with_figures(scene: Scene, change: Callable[[Figure], Figure]) -> Scene:
    return replace(scene, figures=tuple(change(figure) for figure in scene.figures))


def moved(scene: Scene, right: float, down: float) -> Scene:
    return with_figures(scene, lambda f: replace(f, centre=(f.centre[0] + right, f.centre[1] + down)))


def in_next_colour(figure: Figure, step: int = 3) -> Figure:
    names = list(COLOURS)
    return replace(figure, colour=names[(names.index(figure.colour) + step) % len(names)])


def true_ious(scene: Scene, drawn: Scene) -> np.ndarray:
    """Return the IoU of every figure's visible pixels in two renderings."""
    wanted, shown = scene.render()[1], drawn.render()[1]
    return (wanted & shown).sum((1, 2)) / (wanted | shown).sum((1, 2))


def judged(image: np.ndarray | Scene, scene: Scene):
    return judge(image.render()[0] if isinstance(image, Scene) else image, scene.sample().layout)


def summarise(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Return the numbers by the names of the verdicts' fields."""
    fields = {name: field for field, name in (OF_REGION | OF_IMAGE).items()}
    verdicts = list(verdicts)
    found = {fields.get(result.name, result.name): result.value for result in results({"": verdicts})}
    regions = sum(len(verdict.regions) for verdict in verdicts)
    return {**found, "images": len(verdicts), "regions": regions}


def test_rendered_truth_is_the_ceiling():
    summary = summarise(judged(scene, scene) for scene in SCENES)
    assert summary["regions"] == FIGURES and summary["images"] == len(SCENES)
    assert summary["colour_right"] == 1 and summary["background_right"] == 1
    assert summary["pattern_right"] > 0.95
    assert summary["iou"] > 0.99 and summary["boundary_iou"] > 0.95
    assert summary["leak"] == 0 and summary["clutter"] == 0


def test_blur_and_noise_cost_the_boundary_but_not_the_rest():
    summary = summarise(judged(like_a_decoder(scene.render()[0]), scene) for scene in SCENES)
    assert summary["colour_right"] > 0.98 and summary["pattern_right"] > 0.93
    assert summary["iou"] > 0.97 and 0.8 < summary["boundary_iou"] < 0.93
    assert summary["leak"] < 0.002


@pytest.mark.parametrize("blurred", [False, True], ids=["sharp", "blurred"])
@pytest.mark.parametrize(
    "change",
    [
        lambda scene: moved(scene, 1.2, 1.6),
        lambda scene: moved(scene, -2.4, 3.2),
        lambda scene: moved(scene, 4.8, 6.4),
        lambda scene: with_figures(scene, lambda f: replace(f, radius=0.85 * f.radius)),
        lambda scene: with_figures(scene, lambda f: replace(f, radius=1.15 * f.radius)),
        lambda scene: with_figures(scene, lambda f: replace(f, angle=f.angle + 0.5)),
    ],
    ids=["2 px off", "4 px off", "8 px off", "small", "large", "turned"],
)
def test_iou_of_a_wrong_shape_is_the_true_iou(change: Callable[[Scene], Scene], blurred: bool):
    true, measured = [], []
    for scene in SCENES[:5]:
        drawn = change(scene)
        image = drawn.render()[0]
        true.extend(true_ious(scene, drawn))
        measured.extend(region.iou for region in judged(like_a_decoder(image) if blurred else image, scene).regions)
    true, measured = np.array(true), np.array(measured)
    assert np.abs(true - measured).mean() < 0.03
    assert (measured - true).max() < 0.13, "a wrong shape is rewarded"


def test_boundary_iou_collapses_before_iou():
    drawn = [moved(scene, 2.4, 3.2) for scene in SCENES]
    summary = summarise(judged(image, scene) for image, scene in zip(drawn, SCENES, strict=True))
    assert summary["iou"] > 0.7 and summary["boundary_iou"] < 0.2


def test_a_wrong_colour_keeps_its_shape():
    for scene in SCENES:
        if len(scene.figures) == 1:
            drawn = with_figures(scene, in_next_colour)
            (region,) = judged(drawn, scene).regions
            assert not region.colour_right and region.colour == drawn.figures[0].colour
            assert region.iou > 0.97 and region.leak == 0
    summary = summarise(judged(with_figures(scene, in_next_colour), scene) for scene in SCENES)
    assert summary["colour_right"] == 0


def test_wrong_patterns_are_seen():
    def other(figure: Figure) -> Figure:
        return replace(figure, pattern="striped" if figure.pattern == "plain" else "plain")

    unlettered = [scene for scene in SCENES if all(figure.shape != "badge" for figure in scene.figures)] or SCENES
    for scene in unlettered:
        regions = judged(with_figures(scene, other), scene).regions
        plain = [region for region, figure in zip(regions, scene.figures, strict=True) if figure.shape != "badge"]
        assert not any(region.pattern_right for region in plain)
        assert all(region.colour_right and region.iou > 0.97 for region in plain)


def test_the_letter_of_a_badge_is_read():
    badge = Figure("badge", "yellow", "plain", (120.0, 130.0), 50.0, letter="K")
    scene = Scene((badge,), "grey")
    assert judged(scene, scene).regions[0].pattern == "letter K"
    wrong = judged(Scene((replace(badge, letter="T"),), "grey"), scene).regions[0]
    assert wrong.pattern == "letter T" and not wrong.pattern_right


def test_letters_are_read_among_all_capitals_and_none_on_badges_with_others():
    """Read the letters of crowded badges as they are, blurred, and where every badge shows another letter."""
    scenes = [ShapesDataset("test", 5, "badges").scene(index) for index in range(5)]
    right = [region.letter_right for scene in scenes for region in judged(scene, scene).regions]
    assert len(right) > 75 and np.mean(right) >= 0.99
    blurred = [judged(like_a_decoder(scene.render()[0]), scene).regions for scene in scenes[:2]]
    assert np.mean([region.letter_right for regions in blurred for region in regions]) >= 0.97
    after = dict(zip(LETTERS, LETTERS[3:] + LETTERS[:3], strict=True))
    other = [with_figures(scene, lambda figure: replace(figure, letter=after[figure.letter])) for scene in scenes[:2]]
    assert not any(r.letter_right for a, b in zip(other, scenes, strict=False) for r in judged(a, b).regions)


@pytest.mark.parametrize("letter", "CDGOQWZ")
def test_a_letter_that_no_badge_has_is_taken_for_none_that_badges_have(letter: str):
    badge = Figure("badge", "lime", "plain", (120.0, 130.0), 45.0, letter="R")
    scene = Scene((badge,), "grey")
    assert judged(Scene((replace(badge, letter=letter),), "grey"), scene).regions[0].pattern == f"letter {letter}"


def test_dropped_entities_are_missing_and_only_they():
    scene = Scene(
        tuple(
            Figure("circle", colour, "dotted", (60.0 + 130 * (index % 2), 60.0 + 130 * (index // 2)), 35.0)
            for index, colour in enumerate(("red", "blue", "lime", "brown"))
        ),
        "sand",
    )
    for dropped in range(4):
        kept = tuple(figure for index, figure in enumerate(scene.figures) if index != dropped)
        for index, region in enumerate(judged(replace(scene, figures=kept), scene).regions):
            if index == dropped:
                assert (region.iou, region.pattern, region.colour_right) == (0, "missing", False)
                assert region.colour == "sand background"
            else:
                assert region.iou > 0.98 and region.pattern_right and region.colour_right


def test_leak_is_the_share_of_the_region_in_the_other_colour():
    red, blue = (Figure("square", c, "plain", p, 50.0) for c, p in (("red", (70.0, 128.0)), ("blue", (190.0, 128.0))))
    scene = Scene((red, blue), "mint")
    image, masks = scene.render()
    rows = np.nonzero(masks[0].any(1))[0]
    upper = masks[0] & (np.arange(256)[:, None] < rows.min() + 0.25 * len(rows))
    image[upper] = COLOURS["blue"]
    spoiled, other = judged(image, scene).regions
    assert spoiled.leak == pytest.approx(0.25, abs=0.03) and other.leak == 0
    assert spoiled.colour_right and spoiled.iou == pytest.approx(0.75, abs=0.03)


def test_dark_orange_stripes_are_no_leak_of_brown():
    orange = Figure("square", "orange", "striped", (70.0, 70.0), 55.0)
    brown = Figure("circle", "brown", "plain", (190.0, 180.0), 45.0)
    scene = Scene((orange, brown), "sky")
    assert judged(like_a_decoder(scene.render()[0]), scene).regions[0].leak < 0.02
    solid = Scene((replace(orange, colour="brown", pattern="plain"), brown), "sky")
    assert judged(solid, scene).regions[0].leak > 0.95


def test_an_extra_object_is_clutter():
    circle = Figure("circle", "red", "plain", (60.0, 60.0), 30.0)
    scene = Scene((circle,), "grey")
    assert judged(scene, scene).clutter == 0
    extra = Scene((circle, replace(circle, centre=(190.0, 190.0))), "grey")
    away = 256**2 - np.pi * 33**2
    # The blended rim of less than a pixel adds to the share.
    assert judged(extra, scene).clutter == pytest.approx(np.pi * 30**2 / away, rel=0.1)
    assert judged(extra, scene).regions[0].iou > 0.98


@pytest.mark.parametrize("tone", [(128, 128, 128), (0, 0, 0), COLOURS["red"], BACKGROUNDS["mint"]], ids=str)
def test_an_empty_image_shows_no_shape(tone: tuple[int, int, int]):
    for scene in SCENES[:4]:
        noise = np.random.default_rng(1).normal(0, 3, (256, 256, 3))
        image = np.clip(np.float32(tone) + noise, 0, 255).astype(np.uint8)
        assert max(region.iou for region in judged(image, scene).regions) < 0.02


def test_images_of_other_scenes_are_the_floor():
    shuffled = [judged(image, scene) for image, scene in zip(SCENES[1:] + SCENES[:1], SCENES, strict=True)]
    summary = summarise(shuffled)
    assert summary["iou"] < 0.35 and summary["boundary_iou"] < 0.1
    assert summary["colour_right"] < 0.25 and summary["pattern_right"] < 0.25


def test_a_figure_on_another_of_its_colour_is_not_found():
    """Draw a figure on another one of the same colour.

    It cannot be seen, whatever the masks say.
    """
    below = Figure("square", "blue", "plain", (128.0, 128.0), 90.0)
    top = Figure("circle", "red", "plain", (128.0, 128.0), 35.0)
    scene = Scene((below, top), "sand")
    shown = judged(Scene((below, replace(top, colour="blue")), "sand"), scene).regions[1]
    assert shown.iou < 0.05 and shown.leak > 0.95 and not shown.colour_right


def test_only_what_later_masks_leave_is_visible():
    masks = np.zeros((3, 4, 6), bool)
    masks[0, :, :4] = masks[1, 1:3, 2:] = masks[2, 2, 3] = True
    by_hand = masks.copy()
    by_hand[0] &= ~masks[1] & ~masks[2]
    by_hand[1] &= ~masks[2]
    assert (visible(masks) == by_hand).all()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle", Attributes("red", "plain")),
        ("a lime checkered heart", Attributes("lime", "checkered")),
        ("a pink badge with the letter A", Attributes("pink", "letter A")),
    ],
)
def test_captions_are_read(caption: str, expected: Attributes):
    assert Attributes.of(caption) == expected


def test_what_cannot_be_judged_is_refused():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2:6, 2:6] = True
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="none of the colours"):
        judge(image, Layout(masks, ("a cat",)))
    with pytest.raises(UserError, match="end in one of the letters"):
        judge(image, Layout(masks, ("a red badge",)))
    with pytest.raises(UserError, match="image is float32"):
        judge(image.astype(np.float32), Layout(masks, ("a red circle",)))
    with pytest.raises(UserError, match="image is uint8 \\(4, 8, 3\\)"):
        judge(image[:4], Layout(masks, ("a red circle",)))
    with pytest.raises(UserError, match="empty or hidden"):
        judge(image, Layout(np.concatenate([masks, masks]), ("a red circle", "a blue circle")))


def test_a_leak_is_also_measured_as_share_of_coloured_pixels():
    """Paint half of a red circle in the blue of its neighbour.

    Then do the same with most of both figures left out.
    """
    truth = Scene(
        (Figure("circle", "red", "plain", (64, 64), 40), Figure("circle", "blue", "plain", (190, 190), 40)), "sand"
    )
    whole, masks = truth.render()
    leaked = whole.copy()
    leaked[masks[0] & (np.arange(256) < 64)] = COLOURS["blue"]
    erased = leaked.copy()
    erased[(masks[0] | masks[1]) & (np.arange(256)[:, None] % 4 > 0)] = BACKGROUNDS["sand"]
    found = [
        {result.name: result.value for result in results({"": [judged(image, truth)]})}
        for image in (whole, leaked, erased)
    ]
    assert [numbers["leak"] for numbers in found] == pytest.approx([0, 0.25, 0.0625], abs=0.01)
    assert [numbers["leak where coloured"] for numbers in found] == pytest.approx([0, 0.25, 0.25], abs=0.01)
    nothing = results({"": [judged(np.full_like(whole, BACKGROUNDS["sand"]), truth)]})
    assert "leak where coloured" not in {result.name for result in nothing}
