"""Measure masks of phrases: cIoU and gIoU, as referring and reasoning segmentation publish them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result, pooled


@dataclass(frozen=True, eq=False)
class FoundPhrase:
    """The mask of a phrase in the image of sample `key`: bool [H, W] as wanted and as found.

    ignored  pixels that do not count, bool [H, W]
    """

    key: str
    wanted: np.ndarray
    found: np.ndarray
    ignored: np.ndarray | None = None

    def counts(self) -> tuple[int, int]:
        """Count the pixels of intersection and union."""
        counted = True if self.ignored is None else ~self.ignored
        return tuple(int(np.count_nonzero(x & counted)) for x in (self.wanted & self.found, self.wanted | self.found))

    def outside(self) -> FoundPhrase:
        """Return the background as the thing to find: the other row of the published tables."""
        return FoundPhrase(self.key, ~self.wanted, ~self.found, self.ignored)


def cumulative_iou(name: str, phrases: Iterable[FoundPhrase], source: str = GENERATED) -> Result:
    """Compute cIoU, all intersections over all unions; large things count more. Raises UserError without a pixel."""
    parts: dict[str, dict[str, tuple[float, float]]] = {}
    for phrase in phrases:
        before, now = parts.get(phrase.key, {}).get("", (0.0, 0.0)), phrase.counts()
        parts[phrase.key] = {"": (before[0] + now[0], before[1] + now[1])}
    return pooled(name, parts, source=source)


def generalized_iou(name: str, phrases: Iterable[FoundPhrase], source: str = GENERATED) -> Result:
    """Compute gIoU, the mean over phrases of intersection over union, 1 where both masks are empty."""
    mean = RegionMean()
    for phrase in phrases:
        both, either = phrase.counts()
        mean.add(phrase.key, both / either if either else 1.0)
    return mean.result(name, source)
