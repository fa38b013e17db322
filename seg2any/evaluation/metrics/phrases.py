"""The phrases that a judge is asked for: a region's own, another region's, and one that is not in the image.

A segmenter that returns a good mask for a wrong phrase reads the image and not the words (arXiv 2605.09591). So every
number of a judge that takes words comes with two controls: `swapped` and `misleading` phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.evaluation.metrics.leakage import COLOURS, SPELLINGS, WORDS, named_colours
from seg2any.layout.contour import resize_masks

SWAPPED, MISLEADING = "captions of other regions", "misleading phrases"


@dataclass(frozen=True, eq=False)
class Wanted:
    """The regions of an image by phrase.

    key      of the sample
    image    uint8 [H, W, 3]
    regions  phrase -> the visible masks of its regions, bool [N, h, w], each with a pixel
    """

    key: str
    image: np.ndarray
    regions: Mapping[str, np.ndarray]

    @property
    def swapped(self) -> dict[str, str]:
        """Map each phrase to the next one; empty for a single phrase."""
        phrases = list(self.regions)
        return dict(zip(phrases, [*phrases[1:], *phrases[:1]], strict=True)) if len(phrases) > 1 else {}

    def masks(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return the masks by phrase, resized to (h, w)."""
        return {phrase: resize_masks(masks, size) for phrase, masks in self.regions.items()}


def wanted(item: Item, metric: str, phrase_of: Callable[[str], str] = str) -> Wanted:
    """Group an item's visible regions by phrase, in the order of the layout.

    phrase_of  caption -> phrase to ask for
    """
    layout = layout_of(item, metric)
    found: dict[str, list[np.ndarray]] = {}
    for caption, mask in zip(layout.captions, layout.visible, strict=True):
        if mask.any():
            found.setdefault(phrase_of(caption), []).append(mask)
    return Wanted(item.key, item.image, {phrase: np.stack(masks) for phrase, masks in found.items()})


def misleading(phrases: Sequence[str], pool: Iterable[str]) -> dict[str, str]:
    """Map each phrase of an image to one that is not in it; phrases for which there is none are left out.

    A phrase that names a colour names another one, which no phrase of the image names. Any other gets a phrase of
    another image, from `pool`, which starts at another place for each.
    """
    named = set().union(*map(named_colours, phrases)) if phrases else set()
    free = [colour for colour in COLOURS if colour not in named]
    others = [phrase for phrase in dict.fromkeys(pool) if phrase not in phrases]
    found: dict[str, str] = {}
    for number, phrase in enumerate(phrases):
        if (colour := WORDS.search(phrase)) and free:
            other = f"{phrase[: colour.start()]}{free[number % len(free)]}{phrase[colour.end() :]}"
            other = _recoloured(other, named, free[number % len(free)])
        elif others:
            other = others[number % len(others)]
        else:
            continue
        if other not in phrases:
            found[phrase] = other
    return found


def _recoloured(phrase: str, named: set[str], colour: str) -> str:
    """Replace every other colour of the image that a phrase still names."""
    return WORDS.sub(
        lambda word: colour if SPELLINGS.get(word[0].lower(), word[0].lower()) in named else word[0], phrase
    )


def pool_of(items: Iterable[Item], metric: str, phrase_of: Callable[[str], str] = str) -> list[str]:
    """List all phrases of the items."""
    captions = dict.fromkeys(caption for item in items for caption in layout_of(item, metric).captions)
    return list(dict.fromkeys(map(phrase_of, captions)))
