"""Compute confidence intervals by the percentile bootstrap, single and paired.

A sample is drawn with all its images and regions, because those are not independent of each other. Every draw depends
only on the seed and the number of samples, so two runs over the same samples are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from seg2any.evaluation.metrics.result import Parts, Result, quotient, table

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
TAIL = (1 - LEVEL) / 2  # on either side of an interval


@dataclass(frozen=True)
class Difference:
    """A minus B over the samples that both have: value, 95 % interval and number of samples."""

    value: float
    low: float
    high: float
    n: int

    @property
    def is_clear(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


def draws(n: int, resamples: int) -> np.ndarray:
    """Draw resamples: how often each of `n` samples occurs in each of them, int [resamples, n]."""
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=resamples)


def interval(result: Result, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Compute (low, high) of a result; (nan, nan) for a single sample.

    Also (nan, nan) if the result cannot be resampled. A resampled set holds repetitions, which raise distances between
    sets; their interval is therefore the spread of the resamples, centred on the value.
    """
    if result.parts:
        low, high = _percentiles(_values(result.parts, resamples))
    else:
        low, high = _around(result.value, np.asarray(result.resamples))
    return _clipped(low, result), _clipped(high, result)


def _clipped(bound: float, result: Result) -> float:
    return bound if math.isnan(bound) else min(max(bound, result.least), result.most)


def paired_difference(a: Parts, b: Parts) -> Difference:
    """Compare two pooled values over the samples that both have, both resampled alike."""
    common = [key for key in a if key in b]
    if not common:
        return Difference(math.nan, math.nan, math.nan, 0)
    a, b = ({key: parts[key] for key in common} for parts in (a, b))
    values = [quotient(*(part.sum(0) for part in table(parts)[2:])) for parts in (a, b)]
    low, high = _percentiles(_values(a, RESAMPLES) - _values(b, RESAMPLES))
    return Difference(values[0] - values[1], low, high, len(common))


def paired_resamples(values: tuple[float, float], a: Sequence[float], b: Sequence[float], n: int) -> Difference:
    """Compare two distances whose resamples were drawn alike from the same `n` samples."""
    low, high = _around(values[0] - values[1], np.asarray(a) - np.asarray(b))
    return Difference(values[0] - values[1], low, high, n)


def _values(parts: Parts, resamples: int) -> np.ndarray:
    """Compute the pooled value of each resample, float64 [resamples]."""
    _, _, numerators, denominators = table(parts)
    if len(numerators) < 2:
        return np.full(resamples, np.nan)  # one sample alone has no spread
    counts = draws(len(numerators), resamples).astype(np.float64)
    tops, bottoms = counts @ numerators, counts @ denominators
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(bottoms > 0, tops / bottoms, np.nan)
    known = ~np.isnan(quotients)
    return np.where(known, quotients, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanquantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def _around(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """Compute a normal distribution's interval.

    A few resamples give its width, but not the ends of its tails.
    """
    if len(resampled) < 2:
        return math.nan, math.nan
    half = NormalDist().inv_cdf(1 - TAIL) * float(resampled.std(ddof=1))
    return value - half, value + half
