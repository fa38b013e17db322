"""Frechet distance between sets of images: Gaussians fitted to the features of a network.

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

FID (arXiv 1706.08500) with Inception, FDD (arXiv 2306.04675) with DINOv2. Both fall with the number of images, so only
numbers of equally many images can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.evaluation.metrics.features import Features, Network, compared_sets, described, resampled
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import Result
from seg2any.system.errors import UserError

RESAMPLES = 20  # each takes seconds in 2048 dimensions; the spread of 20 is known to about 16 %


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean float64 [D] and a root float64 [D, R] of the covariance: covariance = root root^T."""

    mean: torch.Tensor
    root: torch.Tensor

    @classmethod
    def of(cls, rows: np.ndarray, counts: np.ndarray | None = None) -> Gaussian:
        """Fitted to rows [N, D], row i taken counts[i] times; the covariance is the unbiased one."""
        counts = np.ones(len(rows)) if counts is None else counts
        drawn = torch.from_numpy(rows[counts > 0]).double()
        weights = torch.from_numpy(counts[counts > 0]).double()
        mean = weights @ drawn / weights.sum()
        root = ((drawn - mean) * (weights / (weights.sum() - 1)).sqrt()[:, None]).T
        if root.shape[1] <= root.shape[0]:
            return cls(mean, root)  # fewer images than features: this is the smallest root there is
        return cls.with_covariance(mean, root @ root.T)

    @classmethod
    def with_covariance(cls, mean: torch.Tensor, covariance: torch.Tensor) -> Gaussian:
        """Of a covariance float64 [D, D]."""
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:  # singular
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors * values.clamp(min=0).sqrt()
        return cls(mean, root)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians.

    With C1 = A A^T and C2 = B B^T, tr((C1 C2)^(1/2)) is the sum of the roots of the eigenvalues of M M^T, M = A^T B.
    That matrix is symmetric and as small as the number of images allows; unlike the root of C1 C2 it is always real.
    """
    cross = a.root.T @ b.root
    gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    trace_of_root = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (a.root**2).sum() + (b.root**2).sum() - 2 * trace_of_root
    return float(distance)


def frechet(
    name: str, real: Iterable[Item], generated: Iterable[Item], network: Network, resamples: int = RESAMPLES
) -> list[Result]:
    """The distance of each group of generated images from the real ones, and as value their mean; its ceiling and its
    floor, the former from half as many images, which alone makes it larger.

    Raises UserError for fewer than two images in a set.
    """
    sources = compared_sets(name, real, generated, network)
    if min(len(features.keys) for sets in sources.values() for features in sets) < 2:
        raise UserError(f"{name}: needs at least two images in every group; generate more")
    return [_result(name, source, sets, resamples) for source, sets in sources.items()]


def _result(name: str, source: str, sets: Sequence[Features], resamples: int) -> Result:
    distances = _distances(sets, [None] * len(sets))
    return Result(
        name,
        float(np.mean(distances)),
        {},
        {**described(sets), "groups": distances},
        source,
        "lower",
        resamples=tuple(float(np.mean(_distances(sets, counts))) for counts in resampled(sets, resamples)),
    )


def _distances(sets: Sequence[Features], counts: Sequence[np.ndarray | None]) -> list[float]:
    reference, *others = (Gaussian.of(features.rows, of_rows) for features, of_rows in zip(sets, counts, strict=True))
    return [frechet_distance(reference, other) for other in others]
