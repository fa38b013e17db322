"""Painted colours: the loss that asks for them, and the regions that are cut out of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from seg2any.segment.coloring import ranges
from seg2any.segment.coloring.automatic import AutomaticSettings, regions_of_colors
from seg2any.segment.coloring.bilateral import joint_bilateral
from seg2any.segment.coloring.points import PointSettings, region_of_box, region_of_points
from seg2any.training import coloring_loss as loss_module
from seg2any.training.coloring_loss import coloring_loss, instances_of_colors

COLORS = np.array([[0, 0, 0], [230, 40, 30], [40, 200, 60], [50, 60, 240]], np.uint8)


def planted() -> np.ndarray:
    """Return the owners of pixels: a disc, a ring around nothing, and two bars of one number."""
    owner = np.zeros((60, 80), np.int64)
    y, x = np.mgrid[:60, :80]
    owner[(y - 20) ** 2 + (x - 20) ** 2 < 120] = 1
    distance = (y - 30) ** 2 + (x - 55) ** 2
    owner[(distance < 400) & (distance > 200)] = 2
    owner[50:56, 4:24] = owner[40:46, 4:24] = 3
    return owner


def noisy(owner: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 4, (*owner.shape, 3))
    return (COLORS[owner] + noise).round().clip(0, 255).astype(np.uint8)


def as_batch(colors: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(colors.astype(np.float32)).permute(2, 0, 1)[None]


def test_the_loss_is_least_for_perfect_colours_and_rises_as_they_come_together():
    owner = torch.from_numpy(planted())[None]
    perfect, noise = as_batch(COLORS[planted()]), torch.randn(1, 3, 60, 80, generator=torch.Generator().manual_seed(0))
    together = COLORS.copy()
    together[2] = COLORS[1]
    losses = [
        float(coloring_loss(one, owner, [False]))
        for one in (perfect, perfect + 20 * noise, as_batch(together[planted()]), torch.zeros(1, 3, 60, 80))
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.1


@pytest.mark.parametrize("partly", [False, True])
def test_numbers_of_instances_and_the_size_of_slices_change_nothing(partly: bool, monkeypatch: pytest.MonkeyPatch):
    owner, painted = torch.from_numpy(planted())[None], as_batch(noisy(planted()))
    given = painted.clone().requires_grad_()
    once = coloring_loss(given, owner, [partly])
    once.backward()
    monkeypatch.setattr(loss_module, "SLICE", 60 * 80)
    again = painted.clone().requires_grad_()
    renamed = torch.tensor([0, 17, 5, 900])[owner]
    sliced = coloring_loss(again, renamed, [partly])
    sliced.backward()
    torch.testing.assert_close(sliced, once)
    torch.testing.assert_close(again.grad, given.grad, rtol=1e-5, atol=1e-9)


def test_a_batch_is_the_mean_of_its_images_and_one_without_a_term_costs_nothing():
    owner, painted = torch.from_numpy(planted())[None], as_batch(noisy(planted()))
    nothing, grey = torch.zeros_like(owner), torch.full_like(painted, 128).requires_grad_()
    both = coloring_loss(torch.cat([painted, grey]), torch.cat([owner, nothing]), [False, True])
    both.backward()
    torch.testing.assert_close(both.detach(), coloring_loss(painted, owner, [False]) / 2)
    assert not grey.grad.any()


def test_black_is_the_background_among_instances_of_colours():
    labels = torch.zeros(1, 3, 1, 3, dtype=torch.uint8)
    labels[0, 2, 0, 1], labels[0, 0, 0, 2] = 9, 1
    assert instances_of_colors(labels).tolist() == [[[0, 9, 1 << 16]]]


def test_own_range_takes_each_image_by_itself():
    decoded = torch.tensor([[-3.0, 0.0, 1.0], [5.0, 5.0, 5.0]])[:, :, None, None]
    assert ranges.own_range(decoded).flatten(1).tolist() == [[0, 191.25, 255], [0, 0, 0]]
    assert ranges.fixed_range(torch.tensor([-1.0, 0, 1])).tolist() == [0, 127.5, 255]


def brute_force(guide, source, diameter, by_color, by_place):
    radius, out = max(diameter // 2, 1), np.zeros_like(source)
    height, width = source.shape

    def mirrored(place, edge):
        while edge > 1 and not 0 <= place < edge:
            place = -place if place < 0 else 2 * edge - 2 - place
        return place if edge > 1 else 0

    for y, x in np.ndindex(height, width):
        total = weights = 0.0
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if dx * dx + dy * dy <= radius * radius:
                    there = mirrored(y + dy, height), mirrored(x + dx, width)
                    apart = int(np.abs(guide[there].astype(int) - guide[y, x]).sum())
                    weight = np.exp(-(apart**2) / (2 * by_color**2) - (dx * dx + dy * dy) / (2 * by_place**2))
                    total, weights = total + weight * source[there], weights + weight
        out[y, x] = round(total / weights)
    return out


@pytest.mark.parametrize(
    ("size", "diameter", "spreads"), [((9, 11), 9, (75, 75)), ((3, 5), 9, (20, 2)), ((1, 7), 4, (40, 9))]
)
def test_the_joint_bilateral_filter_equals_its_definition(size, diameter, spreads):
    generator = np.random.default_rng(sum(size))
    guide = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    source = generator.integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(
        joint_bilateral(guide, source, diameter, *spreads), brute_force(guide, source, diameter, *spreads)
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_points_find_regions_and_points_beside_them_cut_them():
    owner = planted()
    colors = noisy(owner)
    disc, _ = region_of_points(colors, [(20, 20)], [], PointSettings())
    assert iou(disc, owner == 1) > 0.95
    both, _ = region_of_points(colors, [(20, 20), (10, 52)], [], PointSettings())
    assert iou(both, (owner == 1) | (owner == 3)) > 0.95
    loose = PointSettings(threshold=0.5)
    assert region_of_points(colors, [(20, 20)], [], loose)[0].sum() > 1.5 * (owner == 1).sum()
    cut, _ = region_of_points(colors, [(20, 20)], [(55, 14), (0, 0), (10, 52)], loose)
    assert iou(cut, owner == 1) > 0.95


def test_a_point_in_one_colour_finds_everything_unless_as_published():
    flat = np.full((20, 30, 3), 90, np.uint8)
    assert region_of_points(flat, [(3, 4)], [], PointSettings())[0].all()
    assert not region_of_points(flat, [(3, 4)], [], PointSettings(similarity="published"))[0].any()


def test_a_box_finds_what_fills_it_and_not_what_is_at_its_middle():
    owner = planted()
    for number in (1, 2, 3):
        rows, columns = np.nonzero(owner == number)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert iou(region_of_box(noisy(owner), box, PointSettings())[0], owner == number) > 0.95


def test_all_regions_are_found_connected_and_the_largest_first():
    owner = planted()
    masks, scores = regions_of_colors(noisy(owner), AutomaticSettings())
    assert len(masks) == 4  # the two bars are two regions
    assert all(cv2.connectedComponents(mask.astype(np.uint8))[0] == 2 for mask in masks)
    wanted = [owner == 2, owner == 1]
    assert all(iou(mask, one) > 0.95 for mask, one in zip(masks, wanted, strict=False))
    assert (np.diff([mask.sum() for mask in masks]) <= 0).all()
    assert not (masks.sum(0) > 1).any()
    assert scores.min() > 0.9
    again, _ = regions_of_colors(noisy(owner), AutomaticSettings())
    assert np.array_equal(again, masks)


def test_small_parts_and_black_are_no_regions():
    owner = planted()
    masks, _ = regions_of_colors(noisy(owner), AutomaticSettings(least_share=0.03))
    assert len(masks) == 2
    assert regions_of_colors(np.zeros((20, 20, 3), np.uint8), AutomaticSettings())[0].shape == (0, 20, 20)
