"""Sets of images as feature vectors, one row per image, for distances between sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from seg2any.evaluation.metrics.bootstrap import draws
from seg2any.evaluation.metrics.item import EMPTY, GREY, Item
from seg2any.evaluation.metrics.result import GENERATED
from seg2any.system.errors import UserError

BATCH = 32
HALVES = "real images, halves"  # the ceiling of distances between sets
EMPTY_SIDE = 64  # pixels; any size will do, because networks resize images
T = TypeVar("T")


class Network(Protocol):
    """A network that turns images into feature vectors."""

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embed B images uint8 [H, W, 3], which may differ in size, as float [B, D]."""


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors, rows of float64 [N, D], of N images of the samples `keys`."""

    keys: tuple[str, ...]
    rows: np.ndarray


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Group items into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def extract(items: Iterable[Item], network: Network, name: str) -> dict[int, Features]:
    """Compute the features of each group of images.

    Raises UserError, naming the metric, if there is no image.
    """
    keys: dict[int, list[str]] = {}
    rows: dict[int, list[np.ndarray]] = {}
    for batch in batches(items):
        for item, row in zip(batch, network([item.image for item in batch]), strict=True):
            keys.setdefault(item.group, []).append(item.key)
            rows.setdefault(item.group, []).append(row)
    if not keys:
        raise UserError(f"{name}: there is no image; generate some first")
    return {group: Features(tuple(keys[group]), np.stack(rows[group]).astype(np.float64)) for group in sorted(keys)}


def compared_sets(
    name: str, real: Iterable[Item], generated: Iterable[Item], network: Network
) -> dict[str, list[Features]]:
    """Map each source of images to a reference set and the sets that are measured against it.

    Generated images, by group, are measured against the real ones. Ceiling: every second real image against the others,
    if there are four or more. Floor: an empty image for every real one. Shuffled images form the same set as unshuffled
    ones, so they are not a floor here. Raises UserError if there is no image.
    """
    (reference, *_) = extract(real, network, f"{name}, real images").values()
    groups = extract(generated, network, f"{name}, generated images").values()
    found = {GENERATED: [reference, *groups]}
    if len(reference.keys) >= 4:
        found[HALVES] = [Features(reference.keys[start::2], reference.rows[start::2]) for start in (0, 1)]
    empty = network([np.full((EMPTY_SIDE, EMPTY_SIDE, 3), GREY, np.uint8)])
    rows = np.repeat(np.asarray(empty, np.float64), len(reference.keys), 0)
    return found | {EMPTY: [reference, Features(reference.keys, rows)]}


def resampled(sets: Sequence[Features], resamples: int) -> Iterator[list[np.ndarray]]:
    """Yield, per resample, how often each row of each set is drawn: int [N] for each set.

    A sample's rows are drawn together in all sets, so real and generated images of one sample stay a pair. Resamples
    that leave fewer than two rows in a set, which happens with a handful of images, are left out.
    """
    keys = sorted({key for features in sets for key in features.keys})
    place = {key: index for index, key in enumerate(keys)}
    rows = [np.array([place[key] for key in features.keys]) for features in sets]
    for counts in draws(len(keys), resamples):
        of_sets = [counts[index] for index in rows]
        if min(of_rows.sum() for of_rows in of_sets) > 1:
            yield of_sets


def described(sets: Sequence[Features]) -> dict:
    """Count the images, and hash the sample keys.

    Runs with equal hashes can be compared resample by resample.
    """
    keys = "\n".join(sorted({key for features in sets for key in features.keys}))
    return {
        "n": len(sets[-1].keys),
        "n_real": len(sets[0].keys),
        "keys_sha256": hashlib.sha256(keys.encode()).hexdigest(),
    }
