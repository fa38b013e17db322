"""Describe figures of a `shapes` scene in words: by attributes, uniqueness, size, place, relations and in the plural.

A phrase is taken only if it is clear: every figure of the scene either fits it or clearly does not. An attribute that
is not named may have any value, so "the red star" is clear beside a red striped ring, not beside a red striped star.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seg2any.data.shapes import Scene
from seg2any.data.shapes_draw import Figure

APART = 1 / 16  # of the image's edge: figures that are closer along an axis are neither left nor right of each other
LARGER = 1.3  # ratio of areas from which one figure is clearly the larger
ANY = "figure"  # the noun of a figure whose shape is not named
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
# Relation -> axis and direction in which the one described lies from the other; y points down.
RELATIONS = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
# Superlative -> what is compared, and the sign of the best
EXTREMES = {
    "largest": ("area", 1),
    "smallest": ("area", -1),
    "leftmost": ("x", -1),
    "rightmost": ("x", 1),
    "topmost": ("y", -1),
    "lowest": ("y", 1),
}


@dataclass(frozen=True)
class Seen:
    """A figure as it is seen: its number in the scene, visible area and centre as shares of the image."""

    number: int
    figure: Figure
    area: float
    x: float
    y: float


@dataclass(frozen=True)
class Description:
    """Attributes that a figure must have; None: any."""

    colour: str | None = None
    pattern: str | None = None
    shape: str | None = None
    letter: str | None = None

    def fits(self, figure: Figure) -> bool:
        """Tell whether the figure has all of the attributes."""
        return all(value in (None, getattr(figure, name)) for name, value in vars(self).items())

    @property
    def named(self) -> int:
        """Number of attributes."""
        return sum(value is not None for value in vars(self).values())

    def text(self, plural: bool = False) -> str:
        """Write the description without an article."""
        noun = (self.shape or ANY) + "s" * plural
        words = [word for word in (self.colour, self.pattern, noun) if word]
        return " ".join(words) + (f" with the letter {self.letter}" if self.letter else "")


@dataclass(frozen=True)
class Phrase:
    """A clear phrase and the numbers of the figures that it means; `kind` is a key of KINDS."""

    text: str
    figures: tuple[int, ...]
    kind: str


def see(scene: Scene, masks: np.ndarray | None = None) -> list[Seen]:
    """Measure the visible figures of a scene; `masks`, bool [N, H, W], are drawn if they are not given."""
    masks = scene.masks() if masks is None else masks
    seen = []
    for number, (figure, mask) in enumerate(zip(scene.figures, masks, strict=True)):
        rows, columns = np.nonzero(mask)
        if len(rows):
            x, y = (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]
            seen.append(Seen(number, figure, float(mask.mean()), float(x), float(y)))
    return seen


def descriptions(figure: Figure) -> list[Description]:
    """List all descriptions that fit a figure and name something, the shortest first."""
    names = {"colour": figure.colour, "shape": figure.shape}
    names |= {"letter": figure.letter} if figure.shape == "badge" else {"pattern": figure.pattern}
    found = [
        Description(**{name: names[name] for name in chosen})
        for count in range(1, len(names) + 1)
        for chosen in itertools.combinations(names, count)
    ]
    return [one for one in found if one.letter is None or one.shape]  # only a badge is known to have a letter


def clear_phrases(seen: Sequence[Seen]) -> dict[str, list[Phrase]]:
    """List the clear phrases of a scene by kind; a kind may have none."""
    return {kind: sorted(set(make(seen)), key=lambda one: one.text) for kind, make in KINDS.items()}


def draw_phrase(phrases: dict[str, list[Phrase]], rng: np.random.Generator) -> Phrase:
    """Draw a kind that has a phrase, then one of its phrases."""
    kinds = [kind for kind, found in phrases.items() if found]
    found = phrases[kinds[rng.integers(len(kinds))]]
    return found[rng.integers(len(found))]


def is_beside(one: Seen, other: Seen, relation: str) -> bool | None:
    """Tell whether `one` lies so from `other`; None where that is not clear."""
    axis, direction = RELATIONS[relation]
    distance = direction * (getattr(one, axis) - getattr(other, axis))
    return None if abs(distance) < APART else distance > 0


def _fitting(seen: Sequence[Seen], description: Description) -> list[Seen]:
    return [one for one in seen if description.fits(one.figure)]


def _by_attributes(seen: Sequence[Seen]) -> Iterator[Phrase]:
    for one in seen:
        for description in descriptions(one.figure):
            if len(_fitting(seen, description)) == 1:
                yield Phrase(f"the {description.text()}", (one.number,), "attributes")


def _the_only(seen: Sequence[Seen]) -> Iterator[Phrase]:
    if len(seen) < 2:
        return
    for one in seen:
        for description in descriptions(one.figure):
            if description.named == 1 and len(_fitting(seen, description)) == 1:
                yield Phrase(f"the only {description.text()}", (one.number,), "only")


def _extremes(seen: Sequence[Seen]) -> Iterator[Phrase]:
    options = {Description(), *(d for one in seen for d in descriptions(one.figure) if d.named < 3)}
    for description in options:
        found = _fitting(seen, description)
        if len(found) < 2:
            continue
        for word, (quantity, sign) in EXTREMES.items():
            best, second = sorted(found, key=lambda one: -sign * getattr(one, quantity))[:2]  # noqa: B023
            if _is_clear(getattr(best, quantity), getattr(second, quantity), quantity):
                yield Phrase(f"the {word} {description.text()}", (best.number,), "extreme")


def _is_clear(best: float, second: float, quantity: str) -> bool:
    if quantity == "area":
        return max(best, second) >= LARGER * min(best, second)
    return abs(best - second) >= APART


def _relations(seen: Sequence[Seen]) -> Iterator[Phrase]:
    """Yield phrases whose relation is needed: without it they would fit several figures."""
    anchors = [(other, description) for other in seen for description in _shortest(seen, other)]
    options = {d for one in seen for d in descriptions(one.figure)} | {Description()}
    for description in options:
        found = _fitting(seen, description)
        if len(found) < 2:
            continue
        for (other, anchor), relation in itertools.product(anchors, RELATIONS):
            rest = [one for one in found if one is not other]
            answers = [is_beside(one, other, relation) for one in rest]
            if len(rest) > 1 and None not in answers and sum(answers) == 1:
                text = f"the {description.text()} {relation} the {anchor.text()}"
                yield Phrase(text, (rest[answers.index(True)].number,), "relation")


def _shortest(seen: Sequence[Seen], one: Seen) -> list[Description]:
    """Return the shortest descriptions that fit this figure alone."""
    clear = [d for d in descriptions(one.figure) if len(_fitting(seen, d)) == 1]
    return [d for d in clear if d.named == clear[0].named]


def _plurals(seen: Sequence[Seen]) -> Iterator[Phrase]:
    for description in {d for one in seen for d in descriptions(one.figure) if d.letter is None}:
        numbers = tuple(one.number for one in _fitting(seen, description))
        if len(numbers) > 1:
            yield Phrase(f"all {description.text(plural=True)}", numbers, "plural")
            yield Phrase(f"the {description.text(plural=True)}", numbers, "plural")
            if len(numbers) in COUNTS:
                yield Phrase(f"the {COUNTS[len(numbers)]} {description.text(plural=True)}", numbers, "plural")


KINDS: dict[str, Callable[[Sequence[Seen]], Iterator[Phrase]]] = {
    "attributes": _by_attributes,
    "only": _the_only,
    "extreme": _extremes,
    "relation": _relations,
    "plural": _plurals,
}
