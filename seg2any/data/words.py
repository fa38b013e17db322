"""Offer what an image can be asked for in words: categories, phrases, questions, and a description with its spans.

Any data set can be opened so. Its layouts give categories, phrases and a description as far as captions do; scenes of
`shapes` give all of them, and know the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from seg2any.data.dataset import ClosedSet, DataSet
from seg2any.data.shapes import Scene, ShapesDataset
from seg2any.data.shapes_answers import grounded_caption, look, questions, talk
from seg2any.data.shapes_draw import SHAPES
from seg2any.data.shapes_words import Seen, clear_phrases, see

BACKGROUND = "background"
OWN = "captions"  # the kind of phrases of layouts


@dataclass(frozen=True)
class Asked:
    """Words that mean some regions, by number; `reason` says why where the words do not."""

    text: str
    regions: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class Told:
    """A description with the first character and the end of each phrase, and the region that it means."""

    text: str
    spans: tuple[tuple[int, int], ...]
    regions: tuple[int, ...]


class Worded(Protocol):
    """An image uint8 [H, W, 3], its regions bool [N, H, W] with the category of each, and what can be asked of it.

    looks               what each region is, in words
    phrases, questions  by kind, those of one kind being alike; a kind has at least one
    talk                questions with answers in words, likewise
    """

    image: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]
    looks: Sequence[str]
    phrases: Mapping[str, Sequence[Asked]]
    questions: Mapping[str, Sequence[Asked]]
    talk: Mapping[str, Sequence[tuple[str, str]]]
    told: Told | None


def joined(worded: Worded, regions: Sequence[int]) -> np.ndarray:
    """Join some regions of an image: bool [H, W]."""
    return worded.masks[list(regions)].any(0)


@dataclass(frozen=True, eq=False)
class WordedLayout:
    """An image with the words of its layout's captions; see `Worded`."""

    image: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]
    phrases: Mapping[str, Sequence[Asked]]
    told: Told | None
    questions: Mapping[str, Sequence[Asked]] = field(default_factory=dict)
    talk: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def looks(self) -> tuple[str, ...]:
        """The names: they are captions."""
        return self.names


class WordedScene:
    """A scene of `shapes` with all that can be said of it, found when it is asked for; see `Worded`."""

    def __init__(self, scene: Scene, seed: int):
        self.scene, self.seed = scene, seed
        self.image, self._masks = scene.render()
        self.masks = np.concatenate([self._masks, ~self._masks.any(0, keepdims=True)])
        self.names = (*(figure.shape for figure in scene.figures), BACKGROUND)

    @cached_property
    def _seen(self) -> list[Seen]:
        return see(self.scene, self._masks)

    @cached_property
    def looks(self) -> list[str]:
        """Each figure with its place, and the background; a hidden figure has no place."""
        places = {one.number: look(one) for one in self._seen}
        figures = [places.get(number, figure.caption) for number, figure in enumerate(self.scene.figures)]
        return [*figures, f"the {self.scene.background} background"]

    @cached_property
    def phrases(self) -> dict[str, list[Asked]]:
        """The clear phrases."""
        found = clear_phrases(self._seen)
        return {kind: [Asked(one.text, one.figures) for one in phrases] for kind, phrases in found.items() if phrases}

    @cached_property
    def questions(self) -> dict[str, list[Asked]]:
        """The questions with one answer."""
        found: dict[str, list[Asked]] = {}
        for one in questions(self._seen):
            found.setdefault(one.kind, []).append(Asked(one.text, one.figures, one.reason))
        return found

    @cached_property
    def talk(self) -> dict[str, list[tuple[str, str]]]:
        """The questions whose answers are words."""
        return talk(self._seen)

    @cached_property
    def told(self) -> Told | None:
        """The description of a scene that is not crowded."""
        found = grounded_caption(self.scene, self._seen, np.random.default_rng(self.seed))
        return found and Told(found.text, found.spans, found.figures)


class Words(Protocol):
    """The worded images of a data set.

    categories  all that may be asked for; a category that an image lacks has no region there
    stuff       the categories among them that are no things
    """

    categories: tuple[str, ...]
    stuff: frozenset[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Worded:
        """Read an image and what can be asked of it. Raises SampleError."""

    def key(self, index: int) -> str:
        """Return the sample's name."""

    def fingerprint(self) -> str:
        """Return a digest that changes when images, regions or words change."""


@dataclass(frozen=True)
class ShapesWords:
    """Scenes of `shapes`: their categories are the shapes, and the background as stuff."""

    data: ShapesDataset
    categories = (*SHAPES, BACKGROUND)
    stuff = frozenset({BACKGROUND})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> WordedScene:
        return WordedScene(self.data.scene(index), index)

    def key(self, index: int) -> str:
        return self.data.key(index)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


@dataclass(frozen=True)
class LayoutWords:
    """Any data set of layouts: captions of regions are categories, and phrases where they mean one region.

    A global caption is a description if it holds captions of regions word for word. There are no questions.
    """

    data: DataSet
    stuff = frozenset()

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The classes of a closed set; else none beside an image's own."""
        return tuple(dict.fromkeys(self.data.class_captions)) if isinstance(self.data, ClosedSet) else ()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Worded:
        sample = self.data[index]
        captions, masks = sample.layout.captions, sample.layout.visible
        single = [Asked(one, (n,)) for n, one in enumerate(captions) if captions.count(one) == 1]
        told = _told(sample.layout.caption, captions)
        return WordedLayout(sample.image, masks, tuple(captions), {OWN: single} if single else {}, told)

    def key(self, index: int) -> str:
        return self.data.key(index)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"words {self.data.fingerprint()}".encode()).hexdigest()


def words_of(data: DataSet) -> Words:
    """Open a data set as worded images."""
    return ShapesWords(data) if isinstance(data, ShapesDataset) else LayoutWords(data)


def _told(caption: str | None, captions: Sequence[str]) -> Told | None:
    """Find the captions of regions in the global one, the longest first, none inside another."""
    if not caption:
        return None
    found: dict[tuple[int, int], int] = {}
    for number in sorted(range(len(captions)), key=lambda n: -len(captions[n])):
        start = caption.lower().find(captions[number].lower())
        span = (start, start + len(captions[number]))
        if start >= 0 and all(span[1] <= a or b <= span[0] for a, b in found):
            found[span] = number
    spans = sorted(found)
    return Told(caption, tuple(spans), tuple(found[span] for span in spans)) if spans else None
