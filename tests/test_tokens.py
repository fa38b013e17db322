"""Compare token layouts with sequences written by hand and with brute force."""

import itertools

import numpy as np
import pytest

from benchmarks.scenes import SampleTokens
from seg2any.attention.tokens import Kind, layout_tokens, token_coverage, token_masks
from seg2any.system.errors import UserError


def random_masks(rng: np.random.Generator, n: int, size: tuple[int, int]) -> np.ndarray:
    """Draw overlapping rectangles, some of them empty or a single pixel."""
    masks = np.zeros((n, *size), bool)
    for mask in masks:
        top, left = rng.integers(size[0]), rng.integers(size[1])
        height, width = rng.choice([0, 1, 2, size[0] // 2]), rng.choice([1, 2, size[1] // 2])
        mask[top : top + height, left : left + width] = True
    return masks


def test_a_batch_written_out_by_hand():
    first = SampleTokens((2, 1), np.array([[[1, 0]]], bool), np.array([[0, 1]]))
    second = SampleTokens((0, 1, 1), np.array([[[1, 1]], [[0, 1]]], bool), np.zeros((0, 2), int))
    tokens = layout_tokens([first, second], cond_scale_factor=2)

    g, r, i, c, tp, cp = Kind.GLOBAL, Kind.REGION, Kind.IMAGE, Kind.COND, Kind.TEXT_PAD, Kind.COND_PAD
    assert tokens.kind.tolist() == [[g, g, r, i, i, c], [r, r, tp, i, i, cp]]
    assert tokens.entities.tolist() == [[0, 0, 0b1, 0b1, 0, 0], [0b1, 0b10, 0, 0b1, 0b11, 0]]
    zero = [0, 0, 0]
    assert tokens.positions.tolist() == [
        [zero, zero, zero, zero, [0, 0, 1], [0, 0, 2]],
        [zero, zero, zero, zero, [0, 0, 1], zero],
    ]
    assert (tokens.batch_size, tokens.n_text, tokens.n_image, tokens.n_cond) == (2, 3, 2, 1)


@pytest.mark.parametrize("positions, expected", [(None, 0), (np.zeros((0, 2), int), 1), (np.ones((3, 2), int), 3)])
def test_a_condition_stream_keeps_at_least_one_row(positions, expected):
    tokens = layout_tokens([SampleTokens((1,), np.zeros((0, 2, 2), bool), positions)])
    assert tokens.n_cond == expected
    assert tokens.kind.shape[1] == 1 + 4 + expected


def test_entity_bits_of_63_overlapping_regions():
    rng = np.random.default_rng(0)
    masks = rng.random((63, 3, 4)) < 0.5
    tokens = layout_tokens([SampleTokens((0,) + (1,) * 63, masks)])
    for entity, (row, col) in itertools.product(range(63), np.ndindex(3, 4)):
        image_token = tokens.entities[0, 63 + row * 4 + col].item()
        assert bool(image_token >> entity & 1) == masks[entity, row, col]
        assert tokens.entities[0, entity].item() == 1 << entity
    with pytest.raises(UserError, match="regions"):
        layout_tokens([SampleTokens((0,) + (1,) * 64, np.zeros((64, 1, 1), bool))])


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(UserError, match="text lengths"):
        layout_tokens([SampleTokens((1, 1), np.zeros((2, 1, 1), bool))])
    with pytest.raises(UserError, match="token grids"):
        layout_tokens([SampleTokens((1,), np.zeros((0, 1, 2), bool)), SampleTokens((1,), np.zeros((0, 2, 1), bool))])


def test_coverage_is_stacked_with_empty_rows_for_missing_entities():
    one = SampleTokens((0, 1), np.ones((1, 1, 2), bool), coverage=np.array([[[0.25, 1]]], np.float32))
    two = SampleTokens((0, 1, 1), np.ones((2, 1, 2), bool), coverage=np.ones((2, 1, 2), np.float32))
    assert layout_tokens([one, two]).coverage.tolist() == [[[0.25, 1], [0, 0]], [[1, 1], [1, 1]]]
    assert layout_tokens([one, SampleTokens((1,), np.zeros((0, 1, 2), bool))]).coverage is None


@pytest.mark.parametrize("size, grid", [((6, 4), (3, 2)), ((7, 5), (3, 2)), ((5, 9), (4, 7)), ((3, 3), (5, 4))])
def test_coverage_is_the_exact_area(size, grid):
    """Compare with counting points on a canvas that divides evenly into pixels and tokens."""
    masks = random_masks(np.random.default_rng(1), 4, size)
    canvas = np.kron(masks, np.ones((1, grid[0], grid[1])))  # every pixel becomes grid[0] x grid[1] points
    expected = canvas.reshape(4, grid[0], size[0], grid[1], size[1]).mean((2, 4))
    np.testing.assert_allclose(token_coverage(masks, grid), expected, rtol=1e-6)


def test_nearest_takes_the_pixel_at_the_centre_of_the_token():
    masks = np.random.default_rng(2).random((3, 48, 80)) < 0.5
    assert np.array_equal(token_masks(masks, (3, 5)), masks[:, 8::16, 8::16])


def test_by_coverage_every_entity_that_has_a_pixel_owns_a_token():
    rng = np.random.default_rng(3)
    for _ in range(200):
        masks = random_masks(rng, rng.integers(1, 9), (32, 48))
        owned = token_masks(masks, (2, 3), "coverage")
        assert np.array_equal(owned.any((1, 2)), masks.any((1, 2)))
        assert owned[token_coverage(masks, (2, 3)) > 0.5].all()
        assert not owned[token_coverage(masks, (2, 3)) == 0].any()


def test_by_coverage_ties_go_to_the_entity_on_top():
    """Three tokens: the left entity's, one shared half and half, the right entity's."""
    left, right = np.zeros((2, 4, 12), bool)
    left[:, :6], right[:, 6:] = True, True
    assert token_masks(np.stack([left, right]), (1, 3), "coverage").tolist() == [[[1, 0, 0]], [[0, 1, 1]]]
    assert token_masks(np.stack([right, left]), (1, 3), "coverage").tolist() == [[[0, 0, 1]], [[1, 1, 0]]]


def test_by_coverage_the_background_keeps_what_it_covers_most():
    """The entity owns the first token, so its corner in the second one stays background."""
    mask = np.zeros((1, 4, 8), bool)
    mask[0, :, :4], mask[0, 0, 4] = True, True
    assert token_masks(mask, (1, 2), "coverage").tolist() == [[[True, False]]]


def test_by_coverage_small_entities_choose_different_tokens():
    """Two specks in the token of a large entity, both reaching a little into the next one."""
    masks = np.zeros((3, 8, 16), bool)
    masks[0] = True
    masks[1, 2, 6:9], masks[2, 4, 6:9] = True, True
    owned = token_masks(masks, (1, 2), "coverage")
    assert owned.tolist() == [[[True, True]], [[False, True]], [[True, False]]]


def test_an_unknown_assignment_is_refused():
    with pytest.raises(UserError, match="region_assignment"):
        token_masks(np.zeros((1, 2, 2), bool), (1, 1), "majority")


def test_no_entities_at_all():
    for assignment in ("nearest", "coverage"):
        assert token_masks(np.zeros((0, 4, 4), bool), (2, 2), assignment).shape == (0, 2, 2)
    assert layout_tokens([SampleTokens((3,), np.zeros((0, 2, 2), bool))]).entities.sum() == 0
