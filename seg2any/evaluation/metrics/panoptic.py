"""Measure panoptic quality: what is found of things and of stuff, and how well (arXiv 1801.00868).

A segment is found if one of the same class overlaps it by more than half. The counts follow COCO's rules: pixels
without a truth are in no union, and segments that lie mostly there or in a crowd of their class are no mistake.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from seg2any.evaluation.metrics.result import GENERATED, Result, pooled

VOID = 0  # the number of no segment
HALF = 0.5


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of one image.

    labels   number of the segment of every pixel, integer [H, W], VOID where there is none
    classes  class of each segment by its number; a segment may have no pixel
    crowds   numbers of segments that hold several things of their class
    """

    labels: np.ndarray
    classes: Mapping[int, str]
    crowds: frozenset[int] = frozenset()


@dataclass
class Counts:
    """Segments of one class: summed IoU of the found ones, found, wrong and missed ones."""

    iou: float = 0.0
    found: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> float:
        """Return the divisor of the quality."""
        return self.found + (self.wrong + self.missed) / 2


def count_segments(found: Segments, wanted: Segments) -> dict[str, Counts]:
    """Count the segments of one image by class. Both label maps have one size."""
    counts: dict[str, Counts] = defaultdict(Counts)
    areas, own, shared = _areas(wanted.labels), _areas(found.labels), _shared(wanted.labels, found.labels)
    hit_wanted, hit_found = set(), set()
    for (want, find), pixels in shared.items():
        name = wanted.classes.get(want)
        if VOID in (want, find) or want in wanted.crowds or name is None or name != found.classes.get(find):
            continue
        overlap = pixels / (areas[want] + own[find] - pixels - shared.get((VOID, find), 0))
        if overlap > HALF:
            counts[name] += Counts(iou=overlap, found=1)
            hit_wanted.add(want)
            hit_found.add(find)
    for want, name in wanted.classes.items():
        if want not in hit_wanted and want not in wanted.crowds:
            counts[name] += Counts(missed=1)
    for find, name in found.classes.items():
        if find in own and find not in hit_found:
            crowds = (want for want in wanted.crowds if wanted.classes[want] == name)
            excused = sum(shared.get((want, find), 0) for want in (VOID, *crowds))
            if excused / own[find] <= HALF:
                counts[name] += Counts(wrong=1)
    return dict(counts)


@dataclass
class PanopticQuality:
    """Quality over images; `add` each of them."""

    of_sample: dict[str, dict[str, Counts]] = field(default_factory=dict)

    def add(self, key: str, found: Segments, wanted: Segments) -> None:
        """Count the segments of an image of sample `key`."""
        before = self.of_sample.setdefault(key, {})
        for name, counts in count_segments(found, wanted).items():
            before[name] = before.get(name, Counts()) + counts

    def per_class(self) -> dict[str, Counts]:
        """Return the counts of every class that occurs."""
        sums: dict[str, Counts] = defaultdict(Counts)
        for classes in self.of_sample.values():
            for name, counts in classes.items():
                sums[name] += counts
        return dict(sorted(sums.items()))

    def result(self, name: str, source: str = GENERATED) -> Result:
        """Return PQ, the mean over classes; `extra` holds SQ, RQ and the counts of each class.

        Raises UserError without a segment.
        """
        parts = {
            key: {one: (counts.iou, counts.total) for one, counts in classes.items()}
            for key, classes in self.of_sample.items()
        }
        sums = self.per_class()
        return pooled(name, parts, source=source, extra={**qualities(list(sums.values())), "per_class": _table(sums)})


def qualities(of_classes: Sequence[Counts]) -> dict[str, float]:
    """Average pq, sq and rq over classes, each in 0..1; a class of which nothing is found has 0 of each."""
    counted = [one for one in of_classes if one.total]
    if not counted:
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    rows = [(one.iou / one.total, one.iou / max(one.found, 1), one.found / one.total) for one in counted]
    return dict(zip(("pq", "sq", "rq"), np.mean(rows, 0).tolist(), strict=True))


def _table(sums: Mapping[str, Counts]) -> list[dict]:
    return [{"name": name, **vars(counts), **qualities([counts])} for name, counts in sums.items()]


def _areas(labels: np.ndarray) -> dict[int, int]:
    return dict(zip(*(x.tolist() for x in np.unique(labels, return_counts=True)), strict=True))


def _shared(a: np.ndarray, b: np.ndarray) -> dict[tuple[int, int], int]:
    """Count the pixels of every pair of labels."""
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    return {(int(x), int(y)): int(n) for (x, y), n in zip(pairs.T, counts, strict=True)}
