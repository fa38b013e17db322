"""Choose the rows of the annotation file that a subset has."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np

from seg2any.data.sacap.table import Annotations
from seg2any.system.errors import UserError


@dataclass(frozen=True)
class Subset:
    """A choice of images.

    groups   text for `in_groups`; None: all groups
    regions  least and greatest number of captioned masks of an image
    limit    images at most, taken in the order `pick`, a key of PICKS; None: all
    seed     for the pick `random`
    """

    groups: str | None = None
    regions: tuple[int, int] = (0, 1 << 30)
    limit: int | None = None
    pick: str = "fewest_tars"
    seed: int = 0

    def choose(self, annotations: Annotations, present: Set[str] | None = None) -> np.ndarray:
        """Return bool [n]: the chosen rows. Raises UserError if there is none.

        present  take rows of these groups only; None: of any
        """
        low, high = self.regions
        chosen = in_groups(annotations, self.groups) & (annotations.regions >= low) & (annotations.regions <= high)
        if present is not None:
            chosen &= np.array([group in present for group in annotations.groups], bool)[annotations.codes]
        if not chosen.any():
            raise UserError(f"{annotations.path}: no image fits the choice; change --groups, --regions or the tars")
        if self.limit is not None:
            candidates = np.flatnonzero(chosen)
            order = PICKS[self.pick](annotations.codes[candidates], np.random.default_rng(self.seed))
            chosen = np.zeros(len(annotations), bool)
            chosen[candidates[order[: self.limit]]] = True
        return chosen


def _fewest_tars(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the fullest tar first, and its images in the order of the file."""
    counts = np.bincount(codes)
    return np.lexsort((codes, -counts[codes]))


def _first(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.arange(len(codes))


def _random(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(len(codes))


# Group code of every candidate, generator -> numbers of the candidates in the order in which they are taken.
PICKS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "fewest_tars": _fewest_tars,
    "first": _first,
    "random": _random,
}


def in_groups(annotations: Annotations, text: str | None) -> np.ndarray:
    """Return bool [n]: usable rows of the groups that `text` names; None: of all groups.

    `text` lists names, numbers at the ends of names, or ranges of either. Raises UserError for an unknown group.
    """
    usable = annotations.faults == 0
    if text is None:
        return usable
    numbers = [_number(group) for group in annotations.groups]
    wanted: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(?:\w*_)?(\d+)(?:-(?:\w*_)?(\d+))?", part)
        if part in annotations.groups:
            found = {annotations.groups.index(part)}
        elif match:
            low, high = int(match[1]), int(match[2] or match[1])
            found = {code for code, number in enumerate(numbers) if number is not None and low <= number <= high}
        else:
            found = set()
        if not found:
            raise UserError(f"--groups {part}: no such group in {annotations.path}; write 0-99, or sa_000123, or both")
        wanted |= found
    if not wanted:
        raise UserError(f"--groups {text!r}: it names no group; write 0-99, or sa_000123, or both, or leave it out")
    return usable & np.isin(annotations.codes, sorted(wanted))


def _number(group: str) -> int | None:
    match = re.search(r"(\d+)$", group)
    return int(match[1]) if match else None
