"""Ask questions about a `shapes` scene whose answers are figures or words; describe it with a span for each figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seg2any.data.shapes import MAX_LISTED, Scene, listed
from seg2any.data.shapes_words import COUNTS, RELATIONS, Description, Phrase, Seen, clear_phrases, is_beside

# What everybody knows of a colour or a shape: the end of a question "Which figure ...?"
KNOWN_COLOURS = {
    "red": "has the colour of a ripe strawberry",
    "orange": "has the colour of a carrot",
    "yellow": "has the colour of a lemon",
    "green": "has the colour of a fir tree",
    "blue": "has the colour of the deep sea",
    "purple": "has the colour of an aubergine",
    "pink": "has the colour of a flamingo",
    "brown": "has the colour of chocolate",
}
KNOWN_SHAPES = {
    "circle": "is as round as a full moon",
    "square": "has four equal sides",
    "triangle": "has three corners",
    "star": "looks like something that shines at night",
    "heart": "stands for love",
    "ring": "has a hole in the middle",
    "badge": "can be read",
}
ASKING = {  # kind of phrase -> question
    "extreme": "Which one is {}?",
    "relation": "What can be seen if one looks for {}?",
    "only": "Where is {}?",
    "plural": "Which figures are {}?",
}
GRID = 8  # columns and rows of the places in answers
NUMBERS = {1: "one", **COUNTS}


@dataclass(frozen=True)
class Question:
    """A question whose answer is some figures of the scene, by number, and why.

    kind  "known", or of the phrase that it asks for: a key of ASKING
    """

    text: str
    figures: tuple[int, ...]
    reason: str
    kind: str


@dataclass(frozen=True)
class GroundedCaption:
    """A caption with the first character and the end of each phrase, and the figure that it means."""

    text: str
    spans: tuple[tuple[int, int], ...]
    figures: tuple[int, ...]


def questions(seen: Sequence[Seen]) -> list[Question]:
    """List questions about a scene that have one clear answer, in a fixed order."""
    found = [*_known(seen)]
    for kind, phrases in clear_phrases(seen).items():
        for one in phrases if kind in ASKING else ():
            found.append(Question(ASKING[kind].format(one.text), one.figures, _reason(one, seen), kind))
    return found


def _reason(phrase: Phrase, seen: Sequence[Seen]) -> str:
    """Say what the figures of a phrase look like."""
    looks = [one.figure.caption for number in phrase.figures for one in seen if one.number == number]
    verb = "is" if len(looks) == 1 else "are"
    return f"{phrase.text[0].upper()}{phrase.text[1:]} {verb} {listed(looks)}."


def talk(seen: Sequence[Seen]) -> dict[str, list[tuple[str, str]]]:
    """List questions with their answers in words, by kind: what a figure is, and how many there are."""
    found: dict[str, list[tuple[str, str]]] = {}
    by_number = {one.number: one for one in seen}
    for kind, phrases in clear_phrases(seen).items():
        for phrase in phrases:
            if len(phrase.figures) == 1:
                answer = f"It is {look(by_number[phrase.figures[0]])}."
                found.setdefault(kind, []).append((f"What is {phrase.text}?", answer))
            elif len(phrase.figures) in COUNTS and phrase.text.startswith("all "):
                asked = f"How many {phrase.text.removeprefix('all ')} can be seen?"
                found.setdefault("number", []).append((asked, f"{COUNTS[len(phrase.figures)].capitalize()}."))
    return found


def look(one: Seen) -> str:
    """Say what a figure is and where: the column and the row of its centre, of GRID each, from the upper left."""
    column, row = (NUMBERS[min(int(at * GRID), GRID - 1) + 1] for at in (one.x, one.y))
    return f"{one.figure.caption} in column {column}, row {row}"


def _known(seen: Sequence[Seen]) -> Iterator[Question]:
    for name, known in (("colour", KNOWN_COLOURS), ("shape", KNOWN_SHAPES)):
        for value, ending in known.items():
            description = Description(**{name: value})
            fitting = [one for one in seen if description.fits(one.figure)]
            if len(fitting) == 1:
                why = f"The {description.text()} {ending}."
                yield Question(f"Which figure {ending}?", (fitting[0].number,), why, "known")


def grounded_caption(scene: Scene, seen: Sequence[Seen], rng: np.random.Generator) -> GroundedCaption | None:
    """Describe a scene of up to MAX_LISTED figures from left to right, a phrase for each; None for more.

    Two figures may be told by how they lie to each other.
    """
    if not 0 < len(seen) <= MAX_LISTED:
        return None
    seen = sorted(seen, key=lambda one: one.x)  # an order that can be seen, so that it can be learned
    between = [", "] * max(len(seen) - 2, 0) + [" and "] * (len(seen) > 1)
    if len(seen) == 2 and rng.random() < 0.5:
        clear = [f" {relation} " for relation in RELATIONS if is_beside(seen[0], seen[1], relation)]
        between = [clear[rng.integers(len(clear))]] if clear else between
    text, spans = "", []
    for one, joint in zip(seen, [*between, f" on a {scene.background} background."], strict=True):
        spans.append((len(text), len(text) + len(one.figure.caption)))
        text += one.figure.caption + joint
    return GroundedCaption(text, tuple(spans), tuple(one.number for one in seen))
