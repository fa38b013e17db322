"""Compare predicted maps with masks: dice and focal loss, and the pairing of least cost (Seg4Diff, arXiv 2509.18096).

Shape suffixes: B batch, Q predicted maps, M target masks, n pairs, p positions, h w map, H W mask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ALPHA, GAMMA = 0.25, 2  # of the focal loss
COST_FOCAL, COST_DICE = 0.02, 1.0  # of the pairing
# The number that the focal loss takes for the probability of "inside": its standard form, or the logit itself, as the
# published code does.
FOCAL: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "published": lambda logits: logits}


@dataclass(frozen=True)
class MaskLoss:
    """Focal and dice loss of pairs of a map and a mask, both scalars."""

    focal: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """Return the sum with the published weights."""
        return 0.1 * self.focal + 0.2 * self.dice


def dice_loss(logits: Tensor, targets: Tensor, n_masks: float) -> Tensor:
    """Compute 1 - (2 sum(p t) + 1) / (sum p + sum t + 1) of logits and targets [n, p]; sum, divide by n_masks."""
    p = logits.sigmoid()
    return (1 - (2 * (p * targets).sum(1) + 1) / (p.sum(1) + targets.sum(1) + 1)).sum() / n_masks


def focal_loss(logits: Tensor, targets: Tensor, n_masks: float, form: str = "sigmoid") -> Tensor:
    """Average the focal loss of logits and targets [n, p] over positions; sum it and divide by n_masks.

    form  a key of FOCAL
    """
    inside, outside = _focal_terms(logits, form)
    return (inside * targets + outside * (1 - targets)).mean(1).sum() / n_masks


def pair_costs(logits: Tensor, targets: Tensor, form: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """Compute the focal and the dice cost of every pair of logits [Q, p] and targets [M, p]: [Q, M] each."""
    inside, outside = _focal_terms(logits, form)
    return (inside @ targets.T + outside @ (1 - targets).T) / logits.shape[1], dice_costs(logits, targets)


def dice_costs(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the dice loss of every pair of logits [Q, p] and targets [M, p]: [Q, M]."""
    p = logits.sigmoid()
    return 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1) + 1)


@torch.no_grad()
def pair(maps: Tensor, masks: Tensor, form: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """Pair maps [Q, h, w] of logits and masks [M, H, W] one to one at the least cost, on the grid of the maps.

    Returns the numbers of maps, ascending, and of their masks: int64 [min(Q, M)] each.
    """
    if not len(masks):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    reduced = F.interpolate(masks[None].float(), maps.shape[1:], mode="nearest")[0]
    focal, dice = pair_costs(maps.flatten(1).float(), reduced.flatten(1), form)
    rows, columns = linear_sum_assignment((COST_FOCAL * focal + COST_DICE * dice).cpu().numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def matched_loss(maps: Sequence[Tensor], masks: Sequence[Tensor], form: str = "sigmoid") -> MaskLoss:
    """Compute the loss of the best pairs of each image's maps [Q, h, w] of logits and masks [M, H, W].

    Masks beyond Q have no pair, and count in the divisor nevertheless, as published.
    """
    chosen, wanted = [], []
    for of_image, own in zip(maps, masks, strict=True):
        rows, columns = pair(of_image, own, form)
        chosen.append(of_image[rows.to(of_image.device)])
        wanted.append(own[columns.to(own.device)])
    return mask_loss(torch.cat(chosen), torch.cat(wanted), max(sum(map(len, masks)), 1), form)


def mask_loss(maps: Tensor, masks: Tensor, n_masks: float, form: str = "sigmoid") -> MaskLoss:
    """Compare maps [n, h, w] of logits, enlarged bilinearly, with masks [n, H, W]; divide by n_masks."""
    if not len(maps):
        nothing = maps.sum()
        return MaskLoss(nothing, nothing)
    logits = F.interpolate(maps[None].float(), masks.shape[1:], mode="bilinear", align_corners=False)[0].flatten(1)
    targets = masks.flatten(1).float()
    return MaskLoss(focal_loss(logits, targets, n_masks, form), dice_loss(logits, targets, n_masks))


def columns_of(prompt: Sequence[int], ids: Collection[int]) -> list[int]:
    """List the places of a prompt's token ids that are among a class's ids, wherever they stand, as published."""
    return [place for place, token in enumerate(prompt) if token in ids]


def _focal_terms(logits: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Return the focal loss of every number if it should be inside, and if it should be outside."""
    p = FOCAL[form](logits)
    inside = ALPHA * (1 - p) ** GAMMA * F.softplus(-logits)
    return inside, (1 - ALPHA) * p**GAMMA * F.softplus(logits)
