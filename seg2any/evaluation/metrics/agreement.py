"""Rank agreement: do two judges put the samples into one order?

Kendall's tau-b of the samples' values, by each judge's first number of the generated images: 1 is the same order, 0
none, -1 the reverse. Its interval is bootstrapped over samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

from seg2any.evaluation.metrics.bootstrap import SEED
from seg2any.evaluation.metrics.result import Result

LEAST = 4  # samples
RESAMPLES = 200


def agreements(judges: Mapping[str, Result]) -> list[Result]:
    """Compare every pair of judges, by name, over the samples that both have; pairs with fewer than LEAST are left out.

    Numbers of which lower is better are turned around first.
    """
    results = []
    for (a, first), (b, second) in itertools.combinations(judges.items(), 2):
        keys = [key for key in first.per_sample if key in second.per_sample]
        values = [_turned(result, keys) for result in (first, second)]
        if len(keys) >= LEAST and not math.isnan(value := tau(*values)):
            resamples = tuple(_resampled(*values))
            name = f"rank agreement, {a} and {b}"
            results.append(Result(name, value, {}, {"n": len(keys)}, resamples=resamples, least=-1.0, most=1.0))
    return results


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute Kendall's tau-b of two rows of values; nan if all values of one are equal."""
    return float(kendalltau(a, b).statistic)


def _turned(result: Result, keys: Sequence[str]) -> np.ndarray:
    values = np.array([result.per_sample[key] for key in keys])
    return -values if result.better == "lower" else values


def _resampled(a: np.ndarray, b: np.ndarray) -> list[float]:
    draws = np.random.default_rng(SEED).integers(len(a), size=(RESAMPLES, len(a)))
    return [value for drawn in draws if not math.isnan(value := tau(a[drawn], b[drawn]))]
