"""Turn the logits of Q queries into masks, as published: one way for each kind of question.

Scores are softmax values of the classes, the background being left out. Mask logits are those of SAM's square; `fitted`
cuts them to the picture.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seg2any.segment.regions import boxes_of
from seg2any.segment.xsam.pictures import Frame

TINY = 1e-6


def scores_of(classes: Tensor) -> Tensor:
    """Turn class logits [Q, K] into scores [Q, K - 1] without the background's."""
    return classes.softmax(-1)[:, :-1]


def fitted(masks: Tensor, frame: Frame) -> Tensor:
    """Cut mask logits [N, S, S] to the picture and scale them to its size [N, H, W], bilinearly."""
    height, width = frame.scaled
    return F.interpolate(masks[None, :, :height, :width], frame.size, mode="bilinear", align_corners=False)[0]


def fitted_masks(masks: Tensor, frame: Frame) -> Tensor:
    """Cut masks bool [N, S, S] to the picture and scale them to its size [N, H, W], by the nearest pixel."""
    height, width = frame.scaled
    return F.interpolate(masks[None, :, :height, :width].float(), frame.size, mode="nearest")[0].bool()


@dataclass(frozen=True)
class Segment:
    """A segment of a panoptic map: its value in the map, its class, and the score of its query."""

    number: int
    category: int
    score: float


def panoptic(
    classes: Tensor,
    masks: Tensor,
    stuff: Collection[int] = (),
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap: float = 0.8,
) -> tuple[Tensor, list[Segment]]:
    """Give each pixel to one query at most: a map int64 [H, W], 0 being none, and its segments.

    masks           logits [Q, H, W] at the picture's size
    stuff           classes whose segments become one, which then is listed several times
    threshold       of the score of a query that may have pixels
    mask_threshold  of score times mask, the area that a segment is compared with
    overlap         share of that area that a segment must get

    Every segment has a number of its own; the published code may give one that is taken after two were joined.
    """
    scores, category = scores_of(classes).max(-1)
    kept = scores > threshold
    found, segments = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device), []
    if not kept.any():
        return found, segments
    scores, category = scores[kept], category[kept].tolist()
    weighed = masks[kept].sigmoid() * scores[:, None, None]
    owner = weighed.argmax(0)
    numbers: dict[int, int] = {}  # of joined classes
    count = 0
    for query, one in enumerate(category):
        mask = owner == query
        area, whole = int(mask.sum()), int((weighed[query] >= mask_threshold).sum())
        if not area or not whole or area / whole <= overlap:
            continue
        number = numbers.get(one)
        if number is None:
            number = count = count + 1
            if one in stuff:
                numbers[one] = number
        found[mask] = number
        segments.append(Segment(number, one, float(scores[query])))
    return found, segments


def semantic(classes: Tensor, masks: Tensor, frame: Frame) -> Tensor:
    """Give each pixel the class with the greatest sum of score times mask over the queries: int64 [H, W].

    masks  logits [Q, S, S] of SAM's square
    """
    return fitted(torch.einsum("qk,qhw->khw", scores_of(classes), masks.sigmoid()), frame).argmax(0)


@dataclass(frozen=True)
class Instances:
    """N masks bool [N, H, W] that may overlap, with classes int64 [N] and scores [N]."""

    masks: Tensor
    classes: Tensor
    scores: Tensor


def instances(classes: Tensor, masks: Tensor, threshold: float = 0.5) -> Instances:
    """Take the Q best pairs of query and class, whose scores are multiplied by the mean of the mask inside.

    masks  logits [Q, H, W] at the picture's size
    """
    scores = scores_of(classes)
    best, places = scores.flatten().topk(min(len(scores), scores.numel()))
    queries, category = places // scores.shape[1], places % scores.shape[1]
    logits = masks[queries]
    inside = logits > 0
    best = best * _mean_inside(logits, inside)
    kept = best >= threshold
    return Instances(inside[kept], category[kept], best[kept])


def best_of_class(classes: Tensor, masks: Tensor, threshold: float = 0.5) -> Instances:
    """Take the best query of each class, which may be the same for several: [K - 1] masks in the classes' order.

    masks  logits [Q, H, W] at the picture's size
    """
    scores, queries = scores_of(classes).max(0)
    return Instances(masks[queries].sigmoid() > threshold, torch.arange(len(scores)), scores)


def nearest_to(prompt: Tensor, classes: Tensor, masks: Tensor, threshold: float = 0.5) -> Instances:
    """Take the one of the sure masks whose box overlaps the box of a visual prompt most.

    prompt  bool [H, W]
    masks   logits [Q, H, W] at the picture's size

    Sure are those whose score is at least `threshold`, and the best one.
    """
    every = instances(classes, masks, 0.0)
    sure = (every.scores >= min(threshold, float(every.scores.max()))).nonzero()[:, 0]
    overlaps = box_iou(boxes_of(every.masks[sure]), boxes_of(prompt[None]))
    one = sure[overlaps.argmax()][None]
    return Instances(every.masks[one], every.classes[one], every.scores[one])


def painted(masks: Tensor, values: Tensor, outside: int) -> Tensor:
    """Paint masks [N, H, W] over each other, each with its value, on a map int64 [H, W]."""
    found = torch.full(masks.shape[1:], outside, dtype=torch.int64, device=masks.device)
    for mask, value in zip(masks, values.tolist(), strict=True):
        found[mask] = value
    return found


def box_iou(boxes: Tensor, other: Tensor) -> Tensor:
    """Compute the IoU of boxes [N, 4] with one box [1, 4]: [N]."""
    low, high = torch.maximum(boxes[:, :2], other[:, :2]), torch.minimum(boxes[:, 2:], other[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1)
    return both / (areas - both).clamp(min=TINY)


def _mean_inside(logits: Tensor, inside: Tensor) -> Tensor:
    return (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + TINY)
