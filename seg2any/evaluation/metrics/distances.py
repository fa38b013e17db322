"""Distances between sets of generated and of real images, from the features of a network.

Frechet distance of Gaussians fitted to the features: FID (arXiv 1706.08500) with Inception, FDD (arXiv 2306.04675) with
DINOv2. Both fall with the number of images, so only numbers of equally many images can be compared.

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

CMMD (arXiv 2401.09603): maximum mean discrepancy of CLIP embeddings, which needs fewer images. Gaussian kernel with
sigma 10 on unit vectors, times 1000, the estimator that counts the diagonal, all as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import Result
from seg2any.evaluation.metrics.sets import Features, Network, compared_sets, described, resampled
from seg2any.system.errors import UserError

FRECHET_RESAMPLES = 20  # each takes seconds in 2048 dimensions; the spread of 20 is known to about 16 %
CMMD_RESAMPLES = 200
SIGMA, SCALE = 10.0, 1000.0

# How often each row of each set counts -> distance of every set but the first, the reference, from it.
Distances = Callable[[Sequence[np.ndarray]], list[float]]


def frechet(
    name: str, real: Iterable[Item], generated: Iterable[Item], network: Network, resamples: int = FRECHET_RESAMPLES
) -> list[Result]:
    """Measure the mean Frechet distance of the groups of generated images from the real ones.

    Its ceiling and its floor follow, the ceiling from half as many images, which alone makes it larger. Raises
    UserError for fewer than two images in a set.
    """
    sources = compared_sets(name, real, generated, network)
    if min(len(features.keys) for sets in sources.values() for features in sets) < 2:
        raise UserError(f"{name}: a group has fewer than two images; generate more")

    def result(source: str, sets: Sequence[Features]) -> Result:
        return _result(name, source, sets, resamples, lambda counts: _frechet_distances(sets, counts))

    return [result(source, sets) for source, sets in sources.items()]


def cmmd(
    real: Iterable[Item], generated: Iterable[Item], network: Network, resamples: int = CMMD_RESAMPLES
) -> list[Result]:
    """Measure the mean CMMD of the groups of generated images from the real ones.

    Its ceiling, from half as many images, and its floor follow. `network` gives unit vectors, as `CmmdNetwork` does.
    Raises UserError if a set is empty.
    """

    def result(source: str, sets: Sequence[Features]) -> Result:
        reference, *groups = sets
        kernels = [(kernel(reference, reference), kernel(reference, group), kernel(group, group)) for group in groups]
        return _result("CMMD", source, sets, resamples, lambda counts: _cmmd_distances(kernels, counts))

    return [result(source, sets) for source, sets in compared_sets("CMMD", real, generated, network).items()]


def _result(name: str, source: str, sets: Sequence[Features], resamples: int, distances: Distances) -> Result:
    once = distances([np.ones(len(features.keys)) for features in sets])
    return Result(
        name,
        float(np.mean(once)),
        {},
        {**described(sets), "groups": once},
        source,
        "lower",
        resamples=tuple(float(np.mean(distances(counts))) for counts in resampled(sets, resamples)),
    )


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean float64 [D] and a root float64 [D, R] of the covariance: covariance = root root^T."""

    mean: torch.Tensor
    root: torch.Tensor

    @classmethod
    def of(cls, rows: np.ndarray, counts: np.ndarray | None = None) -> Gaussian:
        """Fit to rows [N, D], row i taken counts[i] times; the covariance is the unbiased one."""
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
        """Build the Gaussian of a mean float64 [D] and a covariance float64 [D, D]."""
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:  # singular
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors * values.clamp(min=0).sqrt()
        return cls(mean, root)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Compute the squared Frechet distance of two Gaussians.

    With C1 = A A^T and C2 = B B^T, tr((C1 C2)^(1/2)) is the sum of the roots of the eigenvalues of M M^T, M = A^T B.
    That matrix is symmetric and as small as the number of images allows; unlike the root of C1 C2 it is always real.
    """
    cross = a.root.T @ b.root
    gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    trace_of_root = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (a.root**2).sum() + (b.root**2).sum() - 2 * trace_of_root
    return float(distance)


def _frechet_distances(sets: Sequence[Features], counts: Sequence[np.ndarray]) -> list[float]:
    reference, *others = (Gaussian.of(features.rows, of_rows) for features, of_rows in zip(sets, counts, strict=True))
    return [frechet_distance(reference, other) for other in others]


def kernel(a: Features, b: Features) -> np.ndarray:
    """Compute the Gaussian kernel of all pairs of rows, float64 [N, M]."""
    squared = (a.rows**2).sum(1)[:, None] + (b.rows**2).sum(1) - 2 * a.rows @ b.rows.T
    return np.exp(-squared / (2 * SIGMA**2))


def _cmmd_distances(kernels: Sequence[tuple[np.ndarray, ...]], counts: Sequence[np.ndarray]) -> list[float]:
    """`kernels` holds (real, real), (real, generated) and (generated, generated) for each group."""
    reference, *groups = (of_rows / of_rows.sum() for of_rows in counts)
    return [
        float(SCALE * (reference @ real @ reference + group @ own @ group - 2 * reference @ cross @ group))
        for (real, cross, own), group in zip(kernels, groups, strict=True)
    ]
