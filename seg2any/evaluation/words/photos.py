"""Define what a benchmark of words knows of an image: phrases, a description, or segments of every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seg2any.evaluation.metrics.panoptic import Segments


@dataclass(frozen=True, eq=False)
class AskedPhrase:
    """Words that mean a mask bool [H, W].

    ignored   pixels that do not count, bool [H, W]
    question  True: words that ask for an answer, not a name of the thing
    kind      what the words are like, for numbers of their own
    """

    text: str
    mask: np.ndarray
    ignored: np.ndarray | None = None
    question: bool = False
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Photo:
    """One image of a benchmark; what a benchmark does not ask for is left empty.

    read      returns the image uint8 [H, W, 3]
    phrases   each to be segmented
    told      texts and masks bool [H, W] of the phrases of its description
    caption   its description
    segments  the segments of all its pixels
    """

    key: str
    read: Callable[[], np.ndarray]
    phrases: tuple[AskedPhrase, ...] = ()
    told: tuple[tuple[str, np.ndarray], ...] = ()
    caption: str = ""
    segments: Segments | None = None


@dataclass(frozen=True)
class Categories:
    """The closed list of a benchmark; the categories of `stuff` are no things."""

    names: tuple[str, ...]
    stuff: frozenset[str]
