"""The shapes world: deterministic, consistent, and true to its captions."""

import numpy as np
import pytest

from seg2any.data.shapes import DRAWING, KINDS, MIN_VISIBLE, ShapesDataset, _between, _one_of, _sample_figure, held_out
from seg2any.data.shapes_draw import (
    BACKGROUNDS,
    COLOURS,
    INK,
    LETTER,
    LETTERS,
    PATTERNS,
    PERIOD,
    SHAPES,
    Figure,
    covers_any,
    draw_alpha,
    draw_mask,
    draw_texture,
)
from seg2any.layout.overlap import visible_masks
from seg2any.system.errors import UserError


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_scene_depends_on_its_index_only(kind):
    small, large = ShapesDataset("val", 2, kind), ShapesDataset("val", 50, kind)
    first, again = small[1], large[1]
    assert np.array_equal(first.image, again.image) and first.layout.digest() == again.layout.digest()
    assert not np.array_equal(first.image, large[3].image)


def test_scenes_are_those_of_drawing_2():
    """Compare fingerprints of fixed scenes.

    When the scenes change on purpose, raise DRAWING and update these numbers.
    """
    assert DRAWING == 2
    sample = ShapesDataset("test", 20, "mixed")[8]
    expected = (
        "a red dotted heart, a cyan badge with the letter S, a purple checkered ring, a purple badge with the letter"
    )
    assert sample.layout.caption == f"{expected} T and a pink triangle on a lilac background"
    np.testing.assert_allclose(sample.layout.masks.sum((1, 2)), [5102, 3642, 2095, 3268, 915], atol=3)
    np.testing.assert_allclose(sample.image.mean((0, 1)), [187.7, 170.3, 204.9], atol=0.1)


def test_the_fingerprint_is_that_of_the_parameters():
    first = ShapesDataset("test", 20)
    made = [first, ShapesDataset("val", 20), ShapesDataset("test", 21), ShapesDataset("test", 20, seed=1)]
    assert len({data.fingerprint() for data in made}) == len(made)
    assert ShapesDataset("test", 20).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("size", [(128, 256), (384, 256), (192, 320)])
def test_long_images_hold_whole_figures_over_their_length(size: tuple[int, int]):
    data = ShapesDataset("test", 25, size=size)
    masks = [data.scene(index).masks() for index in range(25)]
    assert all(found.shape[1:] == size and found.any((1, 2)).all() for found in masks)
    cut = [edge.any() for found in masks for mask in found for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])]
    assert np.mean(cut) < 0.03
    where = np.concatenate(masks).any(0)
    assert where.any(0).mean() > 0.9 and where.any(1).mean() > 0.9
    sample = data[0]
    assert sample.image.shape == (*size, 3) and np.array_equal(sample.layout.masks, masks[0])
    both = ShapesDataset("test", 4, sizes=[(256, 256), size])
    assert np.array_equal(both[3].image, data[3].image)
    assert both[2].layout.digest() == ShapesDataset("test", 4)[2].layout.digest()
    assert len({both.fingerprint(), data.fingerprint(), ShapesDataset("test", 4).fingerprint()}) == 3


def test_captions_have_the_right_article():
    figures = [Figure("circle", colour, "striped", (0, 0), 1) for colour in COLOURS]
    articles = {figure.colour: figure.caption.split()[0] for figure in figures}
    assert articles.pop("orange") == "an" and set(articles.values()) == {"a"}
    assert Figure("badge", "orange", "plain", (0, 0), 1, letter="A").caption == "an orange badge with the letter A"


@pytest.mark.parametrize("pattern", ["striped", "dotted", "checkered"])
def test_patterns_repeat_along_the_axes_of_the_image_however_the_figure_is_turned(pattern: str):
    turned, upright = (
        draw_texture(Figure("heart", "lime", pattern, (31.0, 47.0), 40.0, angle), (96, 96), np.s_[:96, :96])
        for angle in (0.7, 0.0)
    )
    assert np.array_equal(turned, upright)
    np.testing.assert_allclose(turned[PERIOD:], turned[:-PERIOD], atol=1e-3)
    np.testing.assert_allclose(turned[:, PERIOD:], turned[:, :-PERIOD], atol=1e-3)


@pytest.mark.parametrize("letter", LETTERS)
def test_the_letter_of_a_badge_lies_in_the_tokens_next_to_its_centre(letter: str):
    badge = Figure("badge", "yellow", "plain", (70.0, 43.0), LETTER, letter=letter)
    inked = (draw_texture(badge, (96, 128), np.s_[:96, :128]) < np.float32(COLOURS["yellow"]) - 9).any(-1)
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    # 48 is the multiple of 16 next to 43, and 64 that next to 70
    assert 32 <= rows[0] < 45 < 52 < rows[-1] < 64 and 48 <= columns[0] < 60 < 68 < columns[-1] < 80


def test_splits_and_seeds_show_different_scenes():
    scenes = [ShapesDataset(split, 1, seed=seed).scene(0) for split in ("train", "val", "test") for seed in (0, 1)]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_entities_is_within_bounds(kind):
    data, (low, high) = ShapesDataset("test", 30, kind), KINDS[kind].entities
    counts = [len(data.scene(i).figures) for i in range(30)]
    assert max(counts) <= high and min(counts) >= 1
    assert np.mean([low <= n for n in counts]) > 0.9  # a full canvas may have no room for the last figure
    assert KINDS["single"].entities == (1, 1)


def test_every_pixel_of_a_mask_shows_its_caption_and_the_rest_is_background():
    data = ShapesDataset("test", 12)
    for index in range(12):
        scene, sample = data.scene(index), data[index]
        for figure, mask in zip(scene.figures, sample.layout.masks, strict=True):
            tones = np.array([COLOURS[figure.colour], INK], float)
            inner = mask & ~_touches_outside(mask)
            # Every inner pixel lies on the line between the colour and the ink.
            line, offset = tones[1] - tones[0], sample.image[inner] - tones[0]
            along = np.clip(offset @ line / (line @ line), 0, 1)
            assert np.quantile(np.abs(offset - along[:, None] * line), 0.99) < 3  # corners blend a little
            assert figure.colour in figure.caption and figure.shape in figure.caption
        empty = ~_touches_outside(~sample.layout.masks.any(0)) & ~sample.layout.masks.any(0)
        assert np.abs(sample.image[empty] - np.array(BACKGROUNDS[scene.background], float)).max() < 10


def test_masks_are_disjoint_and_no_figure_is_hidden():
    data = ShapesDataset("train", 40)
    overlaps = 0
    for index in range(40):
        scene = data.scene(index)
        whole = [draw_alpha(figure, scene.size) > 0.5 for figure in scene.figures]
        shown = data[index].layout.masks
        assert shown.sum(0).max() <= 1
        overlaps += np.sum(whole, axis=0).max() > 1
        assert all(s.sum() >= MIN_VISIBLE * w.sum() for s, w in zip(shown, whole, strict=True))
    assert 2 <= overlaps <= 25


def test_later_masks_lie_on_top():
    low, high = np.array([[1, 1, 0]], bool), np.array([[0, 1, 1]], bool)
    assert visible_masks([low, high]).astype(int).tolist() == [[[1, 0, 0]], [[0, 1, 1]]]


def test_held_out_combinations_never_occur_in_training_but_do_in_test():
    combinations = [Figure(s, c, p, (0, 0), 1) for s in SHAPES for c in COLOURS for p in PATTERNS]
    assert 0.05 < np.mean([held_out(figure) for figure in combinations]) < 0.15
    seen = {split: [ShapesDataset(split, 60).scene(i).figures for i in range(60)] for split in ("train", "test")}
    assert not any(held_out(figure) for figures in seen["train"] for figure in figures)
    assert any(held_out(figure) for figures in seen["test"] for figure in figures)


def test_thin_scenes_hold_figures_finer_than_a_token():
    figures = [f for i in range(20) for f in ShapesDataset("test", 20, "thin").scene(i).figures]
    widths = [f.radius * (f.stroke if f.shape == "ring" else 1) for f in figures]
    assert min(widths) < 16 and any(f.stretch >= 3 for f in figures)


def test_wrong_arguments_are_named():
    small = ("val", 1, "normal", None, 0, (64, 32))
    for arguments, word in (
        (("dev",), "dev"),
        (("train", 0), "n_scenes"),
        (("train", 1, "odd"), "odd"),
        (small, "size is"),
    ):
        with pytest.raises(UserError, match=word):
            ShapesDataset(*arguments)


def _touches_outside(mask: np.ndarray) -> np.ndarray:
    """Mark pixels within one pixel of the mask's border (8-neighbours, image border excluded)."""
    padded = np.pad(mask, 1, constant_values=True)
    shifts = [
        padded[1 + y : padded.shape[0] - 1 + y, 1 + x : padded.shape[1] - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)
    ]
    return mask & ~np.logical_and.reduce(shifts)


def test_annotations_and_quick_masks_are_those_of_the_drawing():
    data = ShapesDataset(n_scenes=30, kind="mixed")
    for index in range(30):
        annotation, layout = data.annotation(index), data[index].layout
        assert np.array_equal(annotation.regions.masks(), layout.masks) and annotation.captions == layout.captions
        assert annotation.caption == layout.caption
    figures = [figure for index in range(30) for figure in data.scene(index).figures]
    assert {figure.shape for figure in figures} == set(SHAPES)
    for figure in figures:
        assert np.array_equal(draw_mask(figure, (256, 256)), draw_alpha(figure, (256, 256)) > 0.5)


def test_names_are_drawn_as_numpy_draws_them():
    """Compare with `choice`, by which the scenes that exist were placed."""
    ours, numpys = (np.random.default_rng(3) for _ in range(2))
    assert [_one_of(ours, SHAPES) for _ in range(50)] == [str(numpys.choice(SHAPES)) for _ in range(50)]
    assert ours.random() == numpys.random()


def test_numbers_are_drawn_as_numpy_draws_them():
    ours, numpys = (np.random.default_rng(3) for _ in range(2))
    bounds = [(0.2, 0.36), (-np.pi, np.pi), (3, 6), (18.7, 237.3)] * 20
    assert [_between(ours, *pair) for pair in bounds] == [numpys.uniform(*pair) for pair in bounds]


def test_a_figure_that_covers_a_pixel_without_being_drawn_covers_it_when_drawn():
    """Give each figure, of many forms, only pixels outside: none may be found, but most of those inside."""
    rng, found, number = np.random.default_rng(0), 0, 1500
    for at in range(number):
        kind = list(KINDS.values())[at % len(KINDS)]
        figure = _sample_figure(rng, kind, int(rng.integers(1, 20)), (256, 256), rng.uniform(0.5, 1))
        mask = draw_mask(figure, (256, 256))
        assert not covers_any(figure, ~mask), figure
        found += covers_any(figure, mask)
    assert found > 0.7 * number
