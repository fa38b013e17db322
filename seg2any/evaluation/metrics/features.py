"""Images as rows of numbers, for distances between sets of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from seg2any.evaluation.metrics.bootstrap import draws
from seg2any.evaluation.metrics.item import EMPTY, GENERATED, GREY, Item
from seg2any.system.errors import UserError

BATCH = 32
HALVES = "real images, halves"  # the ceiling of distances between sets
EMPTY_SIDE = 64  # any will do: networks bring images to a size of their own
T = TypeVar("T")


class Network(Protocol):
    """Images uint8 [H, W, 3] of any sizes -> float [B, D]."""

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Features:
    """Rows float64 [N, D] of N images of samples `keys`."""

    keys: tuple[str, ...]
    rows: np.ndarray


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def extract(items: Iterable[Item], network: Network, name: str) -> dict[int, Features]:
    """The features of each group of images. Raises UserError if there is no image."""
    keys: dict[int, list[str]] = {}
    rows: dict[int, list[np.ndarray]] = {}
    for batch in batches(items):
        for item, row in zip(batch, network([item.image for item in batch]), strict=True):
            keys.setdefault(item.group, []).append(item.key)
            rows.setdefault(item.group, []).append(row)
    if not keys:
        raise UserError(f"{name}: no image; generate some first")
    return {group: Features(tuple(keys[group]), np.stack(rows[group]).astype(np.float64)) for group in sorted(keys)}


def compared_sets(
    name: str, real: Iterable[Item], generated: Iterable[Item], network: Network
) -> dict[str, list[Features]]:
    """Source -> a reference, and the sets that are measured against it.

    Generated images by group, against the real ones; as ceiling every second real image against the others, if there
    are four; as floor an empty image for every real one. Shuffled images are the same set, so they are no floor here.
    Raises UserError if there is no image.
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
    """For each resample of the samples of all sets: how often each row of each set is drawn, int [N] per set.

    A sample's rows are drawn together in all sets, so real and generated images of one sample stay a pair. Resamples
    that leave a set without a second row are left out: sets of a handful of images have them.
    """
    keys = sorted({key for features in sets for key in features.keys})
    place = {key: index for index, key in enumerate(keys)}
    rows = [np.array([place[key] for key in features.keys]) for features in sets]
    for counts in draws(len(keys), resamples):
        of_sets = [counts[index] for index in rows]
        if min(of_rows.sum() for of_rows in of_sets) > 1:
            yield of_sets


def described(sets: Sequence[Features]) -> dict:
    """How many images, and what two runs must have in common to be compared resample by resample."""
    keys = "\n".join(sorted({key for features in sets for key in features.keys}))
    return {
        "n": len(sets[-1].keys),
        "n_real": len(sets[0].keys),
        "keys_sha256": hashlib.sha256(keys.encode()).hexdigest(),
    }
