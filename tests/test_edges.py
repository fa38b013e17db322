"""Instances by the divergence of self-attention: weights, groups and floods against brute force, and refusals."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from seg2any.commands.segment_edges import probe_settings
from seg2any.segment import edges
from seg2any.segment.edges import Borders, EdgeSegmenter, SelfAttention, borders_of, flooded
from seg2any.segment.probe import ProbeSettings
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError


@pytest.mark.parametrize("slices", [2**22, 7])
def test_weights_are_the_softmax_over_image_tokens_averaged_over_heads_and_blocks(slices: int, monkeypatch):
    monkeypatch.setattr(edges, "SLICE", slices)
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 9, 3, 8), torch.randn(2, 1, 9, 3, 8)
    tap, pattern = SelfAttention((4, 1)), SimpleNamespace(tokens=SimpleNamespace(n_text=2, n_image=5))
    for number, block in enumerate((1, 2, 4)):
        tap(block, query[number // 2], key[number // 2], pattern)
    wanted = torch.zeros(5, 5)
    for number in range(2):
        for head in range(3):
            q, k = query[number, 0, 2:7, head], key[number, 0, 2:7, head]
            wanted += (q @ k.T / 8**0.5).softmax(-1) / 6
    assert not tap.left and torch.allclose(tap.mean, wanted, atol=1e-6)


def test_divergence_is_that_of_each_pair_of_neighbours():
    weights = torch.rand(12, 12).softmax(-1)
    found = borders_of(weights, (3, 4))

    def divergence(a: int, b: int) -> float:
        x, y = weights[a], weights[b]
        return float((x * (x / y).log()).sum() + (y * (y / x).log()).sum()) / 2

    right = [[divergence(4 * row + column, 4 * row + column + 1) for column in range(3)] for row in range(3)]
    below = [[divergence(4 * row + column, 4 * row + column + 4) for column in range(4)] for row in range(2)]
    np.testing.assert_allclose(found.right, right, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.below, below, rtol=1e-4, atol=1e-7)


def test_groups_are_what_can_be_reached_across_low_borders():
    rng = np.random.default_rng(0)
    borders = Borders(rng.random((6, 7)), rng.random((5, 8)))
    groups, left = borders.joined(0.5), {(row, column) for row in range(6) for column in range(8)}
    while left:
        reached, front = set(), [next(iter(left))]
        while front:
            row, column = front.pop()
            reached.add((row, column))
            steps = [
                (row, column + 1, borders.right, (row, column)),
                (row, column - 1, borders.right, (row, column - 1)),
            ]
            steps += [
                (row + 1, column, borders.below, (row, column)),
                (row - 1, column, borders.below, (row - 1, column)),
            ]
            for *place, values, at in steps:
                if tuple(place) in left - reached and values[at] < 0.5:
                    front.append(tuple(place))
        assert {tuple(place) for place in np.argwhere(groups == groups[min(reached)])} == reached
        left -= reached


def planted(size: tuple[int, int] = (64, 96), patch: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a disc that tokens cut; return the photo, the disc, and groups of tokens with single ones on its outline."""
    disc = np.zeros(size, np.uint8)
    cv2.circle(disc, (45, 30), 22, 1, -1)
    image = np.where(disc[..., None] > 0, np.uint8([200, 60, 30]), np.uint8([90, 120, 160]))
    share = disc.reshape(size[0] // patch, patch, size[1] // patch, patch).mean((1, 3))
    groups = np.where(share == 0, 0, np.where(share > 0.7, 1, 2 + np.arange(share.size).reshape(share.shape)))
    return image, disc > 0, groups


def test_the_photo_decides_where_tokens_are_cut():
    image, disc, groups = planted()
    labels = flooded(image, groups)
    assert set(np.unique(labels)) == {0, 1}
    wrong, square, drawn = (labels == 1) != disc, np.ones((5, 5), np.uint8), disc.astype(np.uint8)
    assert not wrong[cv2.dilate(drawn, square) == cv2.erode(drawn, square)].any()
    tokens = np.kron(groups == 1, np.ones((16, 16), bool))
    assert wrong.sum() < 0.3 * (tokens != disc).sum()


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 40), (40, 3)])
def test_the_smallest_photos_are_flooded_whole(size: tuple[int, int]):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert (flooded(image, np.zeros((1, 2), int)) == 0).all()
    assert (flooded(image, np.arange(2)[None]) == -1).all()  # two single tokens


def test_a_score_compares_outline_and_inside():
    borders = Borders(np.float32([[0.1, 0.9, 0.1]] * 2), np.float32([[0.1, 0.1, 0.3, 0.3]]))
    left = np.array([[True, True, False, False]] * 2)
    assert borders.contrast(left) == pytest.approx(0.9 / (0.9 + 0.1))
    assert borders.contrast(~left) == pytest.approx(0.9 / (0.9 + (2 * 0.1 + 2 * 0.3) / 4))
    assert borders.contrast(np.ones((2, 4), bool)) == 0.5


def test_a_model_finds_regions_that_cover_the_photo_and_nothing_in_a_flat_one(pipe, monkeypatch):
    image = np.full((64, 96, 3), 120, np.uint8)
    image[:, 40:] = (200, 30, 60)
    segmenter = EdgeSegmenter(pipe.base, ProbeSettings((1, 3), 64, text_tokens=16))
    x = segmenter.borders(image)
    assert x.right.shape == (3, 4) and x.below.shape == (2, 5) and (x.right >= 0).all()
    assert np.array_equal(x.right, segmenter.borders(image).right)
    step = Borders(np.float32([[0, 1, 0, 0]] * 3), np.zeros((2, 5), np.float32))
    monkeypatch.setattr(segmenter, "borders", lambda image: step)
    layout = segmenter.segment(image, Prompt())
    assert layout.masks.sum(0).min() == layout.masks.sum(0).max() == 1 and len(layout.masks) == 2
    assert (layout.masks[0][:, :38]).all() and (layout.masks[1][:, 42:]).all()
    assert layout.scores.tolist() == [1, 1] and layout.captions == ("region 1", "region 2")
    segmenter.threshold = 2.0
    assert segmenter.segment(image, Prompt()).notes == ("no edge stands out",)
    assert segmenter.segment(image[:, 50:], Prompt()).notes == ("the photo has one colour",)
    with pytest.raises(UserError, match="edges: the prompt holds phrases; give an empty prompt"):
        segmenter.segment(image, Prompt(phrases=("a ring",)))


def test_a_model_that_nobody_measured_needs_blocks_and_a_side(pipe):
    given = SimpleNamespace(blocks=None, side=None, noise_level=None, seeds=[0], guidance_scale=3.5)
    for name, value in (("blocks", [2]), ("side", 64)):
        with pytest.raises(UserError, match=f"--{name}: nobody has measured"):
            probe_settings(given, pipe.base)
        setattr(given, name, value)
    assert probe_settings(given, pipe.base).blocks == (2,)
