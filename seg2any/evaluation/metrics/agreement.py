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
    found = []
    for (a, first), (b, second) in itertools.combinations(judges.items(), 2):
        keys = [key for key in first.per_sample if key in second.per_sample]
        pairs = {key: [(_turned(first, key), _turned(second, key))] for key in keys}
        found.append(agreement(f"rank agreement, {a} and {b}", pairs))
    return [result for result in found if result is not None]


def agreement(name: str, pairs: Mapping[str, Sequence[tuple[float, float]]]) -> Result | None:
    """Compare two orders of all pairs of values, with an interval over samples.

    pairs  sample key -> pairs of the two judges' values

    Returns None for fewer than LEAST samples, or if all values of one judge are equal.
    """
    values = [np.array(of_sample) for of_sample in pairs.values()]
    if len(values) < LEAST or math.isnan(value := tau(*np.concatenate(values).T)):
        return None
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    drawn = (tau(*np.concatenate([values[number] for number in numbers]).T) for numbers in draws)
    resamples = tuple(one for one in drawn if not math.isnan(one))
    return Result(name, value, {}, {"n": len(values)}, resamples=resamples, least=-1.0, most=1.0)


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute Kendall's tau-b of two rows of values; nan if all values of one are equal."""
    return float(kendalltau(a, b).statistic)


def _turned(result: Result, key: str) -> float:
    return -result.per_sample[key] if result.better == "lower" else result.per_sample[key]
