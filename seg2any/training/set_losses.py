"""Compare a set of queries with an image's masks and classes: the loss of Mask2Former as X-SAM weighs it.

Every prediction, final or of an earlier layer, is paired with the targets by itself (arXiv 2112.01527 section 3.2).
Masks are compared at random points: for the loss, most of them where the network is least sure.

Shape suffixes: B images, Q queries, K classes, M masks of one image, n pairs, P points, h w logits, H W masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from seg2any.training.mask_losses import dice_costs, dice_loss

POINTS = 112**2  # as published, for images of 1024 pixels
CANDIDATES, UNSURE = 3, 0.75  # candidates per point, and the share of points that are the least sure of them
CLASS, MASK, DICE = 2.0, 5.0, 5.0  # weights, of the pairing and of the loss
NOTHING = 0.1  # weight of the last class, which unpaired queries should have


class Prediction(NamedTuple):
    """The answer of one layer: logits of masks [B, Q, h, w] and of classes [B, Q, K + 1], "nothing" last."""

    masks: Tensor
    classes: Tensor


class Target(NamedTuple):
    """The truth of one image: masks bool or 0 and 1 [M, H, W], and their classes int64 [M]."""

    masks: Tensor
    classes: Tensor


class Points(Protocol):
    """The random points of one loss, (x, y) in 0..1."""

    def matching(self, image: int) -> Tensor:
        """Return the points at which all pairs of an image are compared for the pairing: [P, 2]."""

    def candidates(self, image: int, pairs: int) -> Tensor:
        """Return points to choose the least sure from: [pairs, CANDIDATES * P, 2]."""

    def uniform(self, image: int, pairs: int) -> Tensor:
        """Return the points that are taken as they come: [pairs, P - UNSURE * P, 2]."""


@dataclass(frozen=True)
class RandomPoints:
    """Points drawn by one generator for each image, on the CPU, so that an image's do not depend on its batch."""

    generators: Sequence[torch.Generator]
    count: int = POINTS

    def matching(self, image: int) -> Tensor:
        return torch.rand(self.count, 2, generator=self.generators[image])

    def candidates(self, image: int, pairs: int) -> Tensor:
        return torch.rand(pairs, CANDIDATES * self.count, 2, generator=self.generators[image])

    def uniform(self, image: int, pairs: int) -> Tensor:
        return torch.rand(pairs, self.count - int(UNSURE * self.count), 2, generator=self.generators[image])


@dataclass(frozen=True)
class SetLoss:
    """Loss of one prediction: classes, masks and dice, scalars without weights."""

    classes: Tensor
    masks: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """Return the weighted sum."""
        return CLASS * self.classes + MASK * self.masks + DICE * self.dice


# Averages a number over the processes of a run, so that each divides by what all of them see.
Share = Callable[[Tensor], Tensor]


def alone(number: Tensor) -> Tensor:
    """Return the number as it is: there is one process."""
    return number


def total_loss(
    predictions: Sequence[Prediction], targets: Sequence[Target], points: Points, share: Share = alone
) -> Tensor:
    """Sum the weighted losses of all predictions, a scalar; points are drawn for them in their order."""
    return torch.stack([set_loss(one, targets, points, share).total for one in predictions]).sum()


def set_loss(prediction: Prediction, targets: Sequence[Target], points: Points, share: Share = alone) -> SetLoss:
    """Compute the loss of one prediction for a batch.

    An image may have no target. Targets beyond Q have no query, and count in the divisor nevertheless, as published.
    """
    pairs = [
        match(prediction.masks[image], prediction.classes[image], target, points.matching(image))
        for image, target in enumerate(targets)
    ]
    device = prediction.masks.device
    n_masks = share(torch.tensor(float(sum(len(target.classes) for target in targets)), device=device)).clamp(min=1)
    masks, dice = _mask_losses(prediction.masks, targets, pairs, points, n_masks)
    return SetLoss(_class_loss(prediction.classes, targets, pairs, share), masks, dice)


@torch.no_grad()
def match(masks: Tensor, classes: Tensor, target: Target, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pair queries with one image's targets at the least cost.

    masks [Q, h, w], classes [Q, K + 1], points [P, 2]. Returns the numbers of queries, ascending, and of their targets:
    int64 [min(Q, M)] each.
    """
    if not len(target.classes):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    rows, columns = linear_sum_assignment(costs(masks, classes, target, points).cpu().numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def costs(masks: Tensor, classes: Tensor, target: Target, points: Tensor) -> Tensor:
    """Compute the cost of every pair of a query and a target: [Q, M]. Arguments as of `match`."""
    points = points.to(masks.device)
    logits = at_points(masks.float(), points.expand(len(masks), -1, -1))
    wanted = at_points(target.masks.to(masks.device).float(), points.expand(len(target.masks), -1, -1))
    inside, outside = F.softplus(-logits), F.softplus(logits)
    entropy = (inside @ wanted.T + outside @ (1 - wanted).T) / points.shape[-2]
    kind = -classes.float().softmax(-1)[:, target.classes.to(classes.device)]
    return MASK * entropy + CLASS * kind + DICE * dice_costs(logits, wanted)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps [n, h, w] bilinearly at points [n, P, 2], (x, y) in 0..1; outside the map is 0. Returns [n, P]."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def _mask_losses(
    masks: Tensor,
    targets: Sequence[Target],
    pairs: Sequence[tuple[Tensor, Tensor]],
    points: Points,
    n_masks: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compare paired masks at points of their own; return cross entropy and dice, sums divided by n_masks."""
    side = [max((target.masks.shape[axis] for target in targets), default=0) for axis in (-2, -1)]
    owners = torch.cat([torch.full_like(rows, image) for image, (rows, _) in enumerate(pairs)])
    queries = torch.cat([rows for rows, _ in pairs])
    # Read at once: the gradient of each reading is as large as all masks.
    logits = masks[owners.to(masks.device), queries.to(masks.device)].float()
    if not len(logits):
        nothing = masks.sum() * 0  # every parameter needs a gradient
        return nothing, nothing
    wanted = torch.cat([_padded(t.masks[c.to(t.masks.device)], side) for t, (_, c) in zip(targets, pairs, strict=True)])
    chosen = _unsure_points(logits.detach(), [len(rows) for rows, _ in pairs], points)
    guess, truth = at_points(logits, chosen), at_points(wanted.to(masks.device).float(), chosen)
    entropy = F.binary_cross_entropy_with_logits(guess, truth, reduction="none").mean(1).sum() / n_masks
    return entropy, dice_loss(guess, truth, n_masks)


@torch.no_grad()
def _unsure_points(logits: Tensor, counts: Sequence[int], points: Points) -> Tensor:
    """Choose the points of each pair: [n, P, 2] for logits [n, h, w], `counts` pairs of each image."""
    owners = [(image, count) for image, count in enumerate(counts) if count]
    drawn = torch.cat([points.candidates(*owner) for owner in owners]).to(logits.device)
    added = torch.cat([points.uniform(*owner) for owner in owners]).to(logits.device)
    kept = int(UNSURE * (drawn.shape[1] // CANDIDATES))
    places = (-at_points(logits, drawn).abs()).topk(kept, dim=1).indices
    return torch.cat([drawn.gather(1, places[..., None].expand(-1, -1, 2)), added], 1)


def _padded(masks: Tensor, side: Sequence[int]) -> Tensor:
    """Enlarge masks [n, H, W] to a common size by zeros on the right and at the bottom."""
    return F.pad(masks, (0, side[1] - masks.shape[-1], 0, side[0] - masks.shape[-2]))


def _class_loss(
    classes: Tensor, targets: Sequence[Target], pairs: Sequence[tuple[Tensor, Tensor]], share: Share
) -> Tensor:
    """Average the cross entropy of classes [B, Q, K + 1] over queries; those without a target count NOTHING."""
    last = classes.shape[-1] - 1
    wanted = torch.full(classes.shape[:2], last, device=classes.device)
    for image, (rows, columns) in enumerate(pairs):
        wanted[image, rows.to(classes.device)] = (
            targets[image].classes[columns.to(targets[image].classes.device)].to(classes.device)
        )
    weights = torch.where(wanted == last, NOTHING, 1.0)
    entropy = F.cross_entropy(classes.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return (entropy * weights.flatten()).sum() / share(weights.sum())
