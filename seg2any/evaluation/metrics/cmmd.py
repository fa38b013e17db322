"""CMMD (arXiv 2401.09603): maximum mean discrepancy of CLIP embeddings, which needs fewer images than FID.

Gaussian kernel with sigma 10 on unit vectors, times 1000, the estimator that counts the diagonal, all as published.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from seg2any.evaluation.metrics.features import Features, Network, compared_sets, described, resampled
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import Result

SIGMA, SCALE = 10.0, 1000.0
RESAMPLES = 200


def cmmd(real: Iterable[Item], generated: Iterable[Item], network: Network, resamples: int = RESAMPLES) -> list[Result]:
    """The distance of each group of generated images from the real ones, and as value their mean; its ceiling, from
    half as many images, and its floor.

    `network` gives unit vectors, as `clip.CmmdNetwork` does. Raises UserError if a set is empty.
    """
    sources = compared_sets("CMMD", real, generated, network)
    return [_result(source, sets, resamples) for source, sets in sources.items()]


def _result(source: str, sets: Sequence[Features], resamples: int) -> Result:
    reference, *groups = sets
    kernels = [(kernel(reference, reference), kernel(reference, group), kernel(group, group)) for group in groups]
    distances = _distances(kernels, [np.ones(len(features.keys)) for features in sets])
    return Result(
        "CMMD",
        float(np.mean(distances)),
        {},
        {**described(sets), "groups": distances},
        source,
        "lower",
        resamples=tuple(float(np.mean(_distances(kernels, counts))) for counts in resampled(sets, resamples)),
    )


def kernel(a: Features, b: Features) -> np.ndarray:
    """float64 [N, M]."""
    squared = (a.rows**2).sum(1)[:, None] + (b.rows**2).sum(1) - 2 * a.rows @ b.rows.T
    return np.exp(-squared / (2 * SIGMA**2))


def _distances(kernels: Sequence[tuple[np.ndarray, ...]], counts: Sequence[np.ndarray]) -> list[float]:
    reference, *groups = (of_rows / of_rows.sum() for of_rows in counts)
    return [
        float(SCALE * (reference @ real @ reference + group @ own @ group - 2 * reference @ cross @ group))
        for (real, cross, own), group in zip(kernels, groups, strict=True)
    ]
