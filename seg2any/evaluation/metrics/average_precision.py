"""Measure average precision and recall of masks with scores, by COCO's rules, for one class.

Over ten thresholds of IoU, sizes of masks, and numbers of answers for an image. Crowds are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seg2any.evaluation.metrics.grounded import overlaps

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}  # pixels
MOST = (1, 10, 100)  # answers for an image
NONE = -1.0  # the value of a number that nothing defines, as COCO prints it


@dataclass(frozen=True, eq=False)
class Answers:
    """Masks of one image, bool [N, H, W], as wanted and as found, the latter with scores [N]."""

    wanted: np.ndarray
    found: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class _Matched:
    """Answers of one image, best first: scores [n], right and ignored [T, n] at each threshold; wanted masks in all."""

    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    wanted: int


def average_precision(images: Mapping[str, Answers]) -> dict[str, float]:
    """Compute AP, AP50, AP75 and AR1 to AR100, the first and the last by size, too; NONE for what does not occur."""
    ordered = [images[key] for key in sorted(images)]
    by_size = {size: _tables(ordered, area, MOST[-1]) for size, area in AREAS.items()}
    whole = by_size[""][0]
    numbers = {"AP": _mean(whole), "AP50": _mean(whole[0]), "AP75": _mean(whole[5])}
    numbers |= {f"AP{size}": _mean(table[0]) for size, table in by_size.items() if size}
    numbers |= {f"AR{most}": _mean(_tables(ordered, AREAS[""], most)[1]) for most in MOST}
    return numbers | {f"AR{size}": _mean(table[1]) for size, table in by_size.items() if size}


def _mean(values: np.ndarray) -> float:
    known = values[values > NONE]
    return float(known.mean()) if known.size else NONE


def _tables(images: list[Answers], area: tuple[float, float], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision [T, RECALLS] and recall [T] over all images."""
    matched = [_match(image, area, most) for image in images]
    wanted = sum(one.wanted for one in matched)
    if not wanted:
        return np.full((len(THRESHOLDS), len(RECALLS)), NONE), np.full(len(THRESHOLDS), NONE)
    order = np.argsort(-np.concatenate([one.scores for one in matched]), kind="stable")
    right, ignored = (np.concatenate([getattr(one, name) for one in matched], 1)[:, order] for name in _LISTS)
    hits = np.cumsum(right & ~ignored, 1, dtype=float)
    misses = np.cumsum(~right & ~ignored, 1, dtype=float)
    precisions = np.zeros((len(THRESHOLDS), len(RECALLS)))
    for row, (hit, miss) in enumerate(zip(hits, misses, strict=True)):
        precision = hit / np.maximum(hit + miss, np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(hit / wanted, RECALLS)
        inside = places < len(hit)
        precisions[row, inside] = best_from_here[places[inside]]
    return precisions, hits[:, -1] / wanted if hits.shape[1] else np.zeros(len(THRESHOLDS))


_LISTS = ("right", "ignored")


def _match(image: Answers, area: tuple[float, float], most: int) -> _Matched:
    """Give each answer, best first, the wanted mask of largest overlap that none before it has."""
    order = np.argsort(-image.scores, kind="stable")[:most]
    found, scores = image.found[order], image.scores[order]
    outside = _outside(image.wanted, area)
    wanted = image.wanted[np.argsort(outside, kind="stable")]
    outside = np.sort(outside, kind="stable")
    iou = overlaps(wanted, found)
    partner = np.full((len(THRESHOLDS), len(found)), -1)
    for row, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(wanted), bool)
        for column in range(len(found)):
            partner[row, column] = place = _best(iou[:, column], taken, outside, min(threshold, 1 - 1e-10))
            if place >= 0:
                taken[place] = True
    right = partner >= 0
    of_ignored = np.where(right, outside[partner] if len(outside) else False, _outside(found, area))
    return _Matched(scores, right, of_ignored.astype(bool), int((~outside).sum()))


def _outside(masks: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    sizes = masks.sum((1, 2))
    return (sizes < area[0]) | (sizes > area[1])


def _best(iou: np.ndarray, taken: np.ndarray, outside: np.ndarray, least: float) -> int:
    """Return the free mask of largest overlap, one of the wanted size if there is any; -1 for none."""
    for candidates in (~taken & ~outside, ~taken & outside):
        places = np.flatnonzero(candidates & (iou >= least))
        if len(places):
            return int(places[len(places) - 1 - np.argmax(iou[places][::-1])])  # of equal ones the last, as COCO does
    return -1
