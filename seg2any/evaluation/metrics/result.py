"""The result of a metric: a value, and the sums behind it, so that it can be resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seg2any.system.errors import UserError

GENERATED = "generated"  # the source of a model's own images
Parts = Mapping[str, Mapping[str, tuple[float, float]]]  # sample key -> class -> (numerator, denominator)


@dataclass(frozen=True)
class Result:
    """One number about a set of images.

    name        name of the metric
    value       the number as it is reported
    per_sample  sample key -> its own value; may be empty for distances between sets
    extra       JSON values that the report shows beside the number
    source      which images: "generated", or a ceiling or a floor
    better      "higher" or "lower"
    parts       sample key -> class -> (numerator, denominator); the value is the mean over the classes of the
                quotients of the sums. Means over samples and regions and pooled IoU all have this form.
    resamples   without parts: values on resampled sets, drawn as `bootstrap.draws` does
    least, most bounds of the reported value and interval
    """

    name: str
    value: float
    per_sample: dict[str, float]
    extra: dict = field(default_factory=dict)
    source: str = GENERATED
    better: str = "higher"
    parts: Parts = field(default_factory=dict)
    resamples: tuple[float, ...] = ()
    least: float = -math.inf
    most: float = math.inf


def pooled(
    name: str, parts: Parts, *, extra: dict | None = None, source: str = GENERATED, better: str = "higher"
) -> Result:
    """Build the Result whose value is the mean over classes of quotients of sums.

    A class's quotient is sum(numerators) / sum(denominators). Classes with a denominator of 0 do not count. Raises
    UserError if no other class is left.
    """
    value = quotient(*totals(parts))
    if math.isnan(value):
        raise UserError(f"{name}: there is nothing to measure; give images that have what the metric looks at")
    own = {key: quotient(*totals({key: classes})) for key, classes in parts.items()}
    return Result(name, value, own, extra or {}, source, better, parts)


def mean(name: str, per_sample: Mapping[str, float], *, source: str = GENERATED, better: str = "higher") -> Result:
    """Build the Result whose value is the mean over the samples."""
    return pooled(name, {key: {"": (value, 1.0)} for key, value in per_sample.items()}, source=source, better=better)


@dataclass
class RegionMean:
    """Mean over regions; every region counts once, whatever image it is in."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)  # sample key -> (sum, count)

    def add(self, key: str, value: float) -> None:
        """Add the value of a region of the sample `key`."""
        total, count = self.sums.get(key, (0.0, 0.0))
        self.sums[key] = total + float(value), count + 1

    def result(self, name: str, source: str, better: str = "higher") -> Result:
        """Return the mean over all regions. Raises UserError if there is none."""
        regions = int(sum(count for _, count in self.sums.values()))
        parts = {key: {"": sums} for key, sums in self.sums.items()}
        return pooled(name, parts, extra={"regions": regions}, source=source, better=better)


def table(parts: Parts) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Tabulate parts as keys [S], classes [C], numerators and denominators float64 [S, C].

    Keys keep their order.
    """
    keys, classes = list(parts), sorted({name for of_sample in parts.values() for name in of_sample})
    column = {name: index for index, name in enumerate(classes)}
    both = np.zeros((2, len(keys), len(classes)))
    for row, key in enumerate(keys):
        for name, quotient_parts in parts[key].items():
            both[:, row, column[name]] = quotient_parts
    return keys, classes, both[0], both[1]


def totals(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Sum numerators and denominators over the samples, [C] each."""
    _, _, numerators, denominators = table(parts)
    return numerators.sum(0), denominators.sum(0)


def quotient(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Average numerators / denominators over the classes [C]; nan if all denominators are 0."""
    counted = denominators > 0
    return float((numerators[counted] / denominators[counted]).mean()) if counted.any() else math.nan
