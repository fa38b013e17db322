"""Masks out of logits, written out."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.parity_xsam.second.book import Undecided
from tests.parity_xsam.second.plain import resize


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Take the softmax of [Q, K] and leave the last class out."""
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return (grown / grown.sum(-1, keepdims=True))[:, :-1]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def fitted(masks: np.ndarray, scaled: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    return resize(torch.from_numpy(masks[:, : scaled[0], : scaled[1]]), size).numpy()


def fitted_nearest(masks: np.ndarray, scaled: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    places = [
        [min(int(np.float32(new) * np.float32(old / edge)), old - 1) for new in range(edge)]
        for old, edge in zip(scaled, size, strict=True)
    ]
    return masks[:, places[0]][:, :, places[1]]


def panoptic(scores: np.ndarray, masks: np.ndarray, about: dict) -> tuple[np.ndarray, list[dict]]:
    """Give pixels to queries; scores [Q, K], mask logits [Q, H, W] of the picture's size."""
    limit, least = about.get("threshold", 0.5), about.get("overlap_mask_area_threshold", 0.8)
    stuff, found, listed, first, count = about["stuff_contiguous_ids"] or [], np.zeros(masks.shape[1:], int), [], {}, 0
    kept = [query for query in range(len(scores)) if scores[query].max() > limit]
    if not kept:
        return found, []
    weighed = np.array([scores[query].max() * sigmoid(masks[query]) for query in kept])
    owner = weighed.argmax(0)
    for place, query in enumerate(kept):
        area, whole = (owner == place).sum(), (weighed[place] >= about.get("mask_threshold", 0.5)).sum()
        if not area or not whole or area / whole <= least:
            continue
        category = int(scores[query].argmax())
        if category in first:
            count = first[category]  # as published: later ones count from here
        else:
            count += 1
            if category in stuff:
                first[category] = count
        found[owner == place] = count
        score = round(float(scores[query].max()), 6)
        listed.append({"id": count, "category_id": category, "isthing": category not in stuff, "score": score})
    return found, listed


def pairs(scores: np.ndarray, masks: np.ndarray, threshold: float) -> list[tuple[float, int, np.ndarray]]:
    """List score, class and mask of the best pairs of query and class, as many as queries."""
    every = sorted(
        ((scores[query, kind], query, kind) for query in range(len(scores)) for kind in range(scores.shape[1])),
        reverse=True,
    )
    found = []
    for score, query, kind in every[: len(scores)]:
        inside = masks[query] > 0
        score = score * sigmoid(masks[query])[inside].sum() / (inside.sum() + 1e-6)
        if score >= threshold:
            found.append((float(score), kind, inside))
    return found


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, and right, bottom after the last pixel."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, 0, 0, 0
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def box_overlap(one: tuple, other: tuple) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return width * height / max(sum(areas) - width * height, 1e-6)


def instances(scores: np.ndarray, masks: np.ndarray, about: dict, outside: int, labels: list | None) -> tuple:
    found = pairs(scores, masks, about["threshold"])
    painted, listed = np.full(masks.shape[1:], outside), []
    for number, (score, kind, inside) in enumerate(found):
        painted[inside] = number
        label = int(kind if labels is None else labels[kind])
        listed.append({"id": number, "label_id": label, "score": round(score, 6), "was_fused": False})
    wide = np.array([one[2] for one in found]).reshape(-1, *masks.shape[1:])
    boxes = np.array([box(one[2]) for one in found], float).reshape(-1, 4)
    return painted, listed, {"pred_masks": wide, "pred_boxes": boxes}


def best(scores: np.ndarray, masks: np.ndarray, about: dict) -> tuple[np.ndarray, list[dict]]:
    """Give each phrase its best query, later ones over earlier ones, from 1.

    Raises Undecided if there are two such.
    """
    painted, listed = np.full(masks.shape[1:], 255), []
    for phrase in range(scores.shape[1]):
        *_, query = order = scores[:, phrase].argsort()
        if len(order) > 1 and scores[query, phrase] - scores[order[-2], phrase] < 1e-6:
            raise Undecided("two queries are the best")
        painted[sigmoid(masks[query]) > about["mask_threshold"]] = phrase + 1
        score = round(float(scores[query, phrase]), 6)
        listed.append({"id": phrase + 1, "category_id": phrase, "isthing": True, "score": score})
    return painted, listed


def interactive(scores: np.ndarray, masks: np.ndarray, about: dict, prompt: np.ndarray) -> tuple[np.ndarray, dict]:
    every = pairs(scores, masks, 0)
    most = max(one[0] for one in every)
    sure = [one for one in every if one[0] >= about["threshold"] or one[0] == most]
    score, _, inside = max(sure, key=lambda one: box_overlap(box(one[2]), box(prompt)))
    return np.where(inside, 1, 255), {"id": 0, "category_id": 0, "score": round(score, 6), "was_fused": False}


def semantic(scores: np.ndarray, masks: np.ndarray, scaled: tuple, size: tuple) -> tuple[np.ndarray, float]:
    """Return the map, and the smallest gap between the best two classes; masks are those of the square."""
    sums = fitted(np.einsum("qk,qhw->khw", scores, sigmoid(masks)), scaled, size)
    ordered = np.sort(sums, 0)
    return sums.argmax(0), float((ordered[-1] - ordered[-2]).min()) if len(sums) > 1 else math.inf
