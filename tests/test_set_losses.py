"""The loss of queries against masks and classes; its recorded cases are in tests/parity_xsam."""

from __future__ import annotations

import itertools

import pytest
import torch

from seg2any.training import set_losses
from seg2any.training.set_losses import Prediction, RandomPoints, Target


def random_batch(n_masks=(3, 2), queries=5, classes=3, seed=0):
    e, n = torch.Generator().manual_seed(seed), len(n_masks)
    prediction = Prediction(
        torch.randn(n, queries, 8, 8, generator=e), torch.randn(n, queries, classes + 1, generator=e)
    )
    targets = [
        Target(torch.rand(n, 16, 16, generator=e) < 0.3, torch.randint(classes, (n,), generator=e)) for n in n_masks
    ]
    return prediction, targets


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_pairs_cost_least_of_all_permutations():
    prediction, targets = random_batch((3,), queries=4)
    points = torch.rand(64, 2, generator=torch.Generator().manual_seed(1))
    one = prediction.masks[0], prediction.classes[0], targets[0], points
    cost = set_losses.costs(*one)
    best = min(sum(cost[q, m] for m, q in enumerate(chosen)) for chosen in itertools.permutations(range(4), 3))
    queries, wanted = set_losses.match(*one)
    assert sum(cost[q, m] for q, m in zip(queries, wanted, strict=True)) == pytest.approx(best.item())


def test_two_processes_share_the_divisors_of_one():
    prediction, targets = random_batch((3, 0, 2))
    together = set_losses.set_loss(prediction, targets, RandomPoints(generators(0, 1, 2), 32)).total
    weights, parts = [], [(0, 1), (1, 3)]

    def note(number):
        weights.append(number)
        return number

    def losses(share):
        found = []
        for a, b in parts:
            points = RandomPoints(generators(0, 1, 2)[a:b], 32)
            own = Prediction(prediction.masks[a:b], prediction.classes[a:b])
            found.append(set_losses.set_loss(own, targets[a:b], points, share).total)
        return found

    losses(note)
    means = [sum(weights[kind::2]) / 2 for kind in range(2)]  # masks, class weights
    given = iter(means * 2)
    assert torch.stack(losses(lambda _: next(given))).mean() == pytest.approx(together.item(), rel=1e-5)


def test_a_batch_without_masks_gives_every_output_a_gradient():
    prediction, targets = random_batch((0, 0))
    inputs = Prediction(*(part.requires_grad_() for part in prediction))
    set_losses.total_loss([inputs], targets, RandomPoints(generators(0, 1), 16)).backward()
    assert inputs.masks.grad.abs().max() == 0 and inputs.classes.grad.abs().max() > 0
