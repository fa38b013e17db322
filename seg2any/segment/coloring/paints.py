"""Name colours in words: a legend says which phrase is painted in which colour.

"a red striped star: blue; a ring: green; everything else: black"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from seg2any.layout.checks import check_caption
from seg2any.system.errors import UserError, shown

PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 190, 40),
    "blue": (30, 40, 230),
    "yellow": (230, 220, 30),
    "cyan": (30, 220, 220),
    "purple": (180, 40, 210),
    "orange": (245, 130, 30),
    "pink": (250, 130, 190),
}
BLACK = "black"  # the colour of what no phrase names
REST = "everything else"
COLORS = np.array(list(PAINTS.values()), np.uint8)


@dataclass(frozen=True)
class Legend:
    """The colours of phrases, both without repetition.

    entries  pairs of a phrase and a name of PAINTS

    Raises UserError for no entry, more entries than paints, and phrases or colours that are given twice or unknown.
    """

    entries: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.entries) <= len(PAINTS):
            raise UserError(f"legend: has {len(self.entries)} entries; give 1 to {len(PAINTS)}, as many as paints")
        for phrase, paint in self.entries:
            check_caption("legend: a phrase", phrase)
            if paint not in PAINTS:
                raise UserError(f"legend: {shown(paint)} is no paint; choose among {', '.join(PAINTS)}")
        for what, texts in (("phrase", self.phrases), ("colour", tuple(paint for _, paint in self.entries))):
            if twice := next((text for n, text in enumerate(texts) if text in texts[:n]), None):
                raise UserError(f"legend: the {what} {shown(twice)} is given twice; give each entry its own")

    @classmethod
    def of(cls, phrases: Sequence[str]) -> Legend:
        """Give the phrases the first paints, in the order of the words, so that their own order changes nothing."""
        names = list(PAINTS)
        return cls(tuple((phrase, names[n % len(names)]) for n, phrase in enumerate(sorted(phrases))))

    @classmethod
    def parse(cls, text: str) -> Legend:
        """Read a legend from "PHRASE: COLOUR; PHRASE: COLOUR". Raises UserError."""
        entries = []
        for part in text.split(";"):
            phrase, colon, paint = (word.strip() for word in part.rpartition(":"))
            if not colon or not phrase:
                raise UserError(f"legend: {shown(part.strip())} names no colour; write PHRASE: COLOUR; PHRASE: COLOUR")
            if phrase == REST and paint == BLACK:
                continue
            entries.append((phrase, paint))
        return cls(tuple(entries))

    @property
    def phrases(self) -> tuple[str, ...]:
        """Return the phrases in order."""
        return tuple(phrase for phrase, _ in self.entries)

    @property
    def colors(self) -> np.ndarray:
        """Return the colours of the phrases: uint8 [N, 3]."""
        return np.array([PAINTS[paint] for _, paint in self.entries], np.uint8)

    @property
    def text(self) -> str:
        """Return the words that a model reads; what they do not name is black."""
        return "; ".join(f"{phrase}: {paint}" for phrase, paint in self.entries)


def painted(masks: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint masks bool [N, H, W], later ones on top, in colours uint8 [N, 3] on black: uint8 [H, W, 3]."""
    picture = np.zeros((*masks.shape[1:], 3), np.uint8)
    for mask, color in zip(masks, colors, strict=True):
        picture[mask] = color
    return picture


def nearest_paints(colors: np.ndarray) -> np.ndarray:
    """Give each of N instances a paint near its own colour, no two alike while there are enough: uint8 [N, 3].

    colors  float [N, 3], 0..255

    The sum of squared distances is least.
    """
    copies = np.tile(COLORS, (max(1, -(-len(colors) // len(COLORS))), 1))
    costs = np.square(colors[:, None].astype(np.float64) - copies[None]).sum(2)
    return copies[linear_sum_assignment(costs)[1]].reshape(-1, 3)
