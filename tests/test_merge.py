"""Pairing at least cost, and merging similar maps, against readings of their rules by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as assign

from seg2any.segment.merge import divergences, groups_of, matched_iou, merged


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (4, 4), (5, 6), (0, 3), (3, 0)])
@pytest.mark.parametrize("is_whole", [False, True])  # whole numbers give ties
def test_pairs_have_the_least_cost_of_all_pairings(shape: tuple[int, int], is_whole: bool):
    rng = np.random.default_rng(sum(shape))
    for _ in range(10):
        cost = rng.integers(0, 3, shape).astype(float) if is_whole else rng.normal(size=shape)
        rows, columns = assign(cost)
        assert len(rows) == min(shape) == len({*columns.tolist()}) and (np.diff(rows) > 0).all()
        wide = cost if shape[0] <= shape[1] else cost.T
        ways = itertools.permutations(range(wide.shape[1]), len(wide))
        best = min(sum(wide[row, column] for row, column in enumerate(way)) for way in ways)
        assert abs(cost[rows, columns].sum() - best) < 1e-9


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="invalid numeric entries"):
        assign(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("threshold", [0.002, 0.01, 0.05, 0.2])
def test_the_greedy_merge_is_its_rule_read_by_brute_force(threshold: float):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 5, 4, generator=generator)
    maps = centres.repeat(3, 1, 1) + 0.2 * torch.randn(9, 5, 4, generator=generator)
    x = [np.exp(one.double().numpy().ravel()) / np.exp(one.double().numpy()).sum() for one in maps]
    divergence = [[(a * np.log(a / b) + b * np.log(b / a)).sum() / 2 for b in x] for a in x]
    np.testing.assert_allclose(divergences(maps).numpy(), divergence, atol=1e-12)
    means, taken = [], [False] * 9
    for i in range(9):
        if taken[i]:
            continue
        group = [j for j in range(9) if divergence[i][j] < threshold]
        for j in group:
            taken[j] = True
        means.append(np.mean([x[j] for j in group], 0).reshape(5, 4))
    np.testing.assert_allclose(merged(maps, threshold).double().numpy(), means, atol=1e-7)


def test_a_map_between_two_others_is_in_both_groups():
    near = torch.tensor([[0.0, 1, 3], [1, 0, 1], [3, 1, 0]])
    assert groups_of(near, 2) == [[0, 1], [1, 2]]


def test_wanted_and_found_regions_are_paired_one_to_one():
    wanted, found = np.zeros((3, 4, 4), bool), np.zeros((2, 4, 4), bool)
    wanted[0, :2], wanted[1, 2:], wanted[2, 0, 0] = True, True, True
    found[0, 2:], found[1, :3] = True, True
    numbers, iou = matched_iou(wanted, found)
    assert numbers.tolist() == [1, 0, -1]
    np.testing.assert_allclose(iou, [8 / 12, 1, 0])
