"""Anchors: questions whose answers are known, by which a change of the judge itself is seen.

A judge behind an address may be replaced without a word, and judges drift away from people as models learn to please
them (GenEval 2, arXiv 2512.16853). So each evaluation asks the same questions about drawn figures: half are right, half
name another colour or shape. Runs are comparable only where their anchors agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from seg2any.data.shapes import ShapesDataset
from seg2any.data.shapes_draw import COLOURS, SHAPES
from seg2any.evaluation.metrics.result import RegionMean, Result
from seg2any.evaluation.vqa.questions import PROTOCOL, Question, about_regions

SCENES = 12
SOURCE = "drawn figures"
NAME = f"{PROTOCOL} anchors"


def anchors(scenes: int = SCENES) -> Iterator[tuple[Question, bool]]:
    """Yield questions about the first figure of each scene, and whether yes is right: two right and two wrong ones."""
    data = ShapesDataset("test", scenes, "normal")
    for number in range(scenes):
        sample = data[number]
        layout = sample.layout
        caption = layout.captions[0]
        words = {"colour": _word_of(caption, tuple(COLOURS)), "shape": _word_of(caption, SHAPES)}
        for kind, known in (("colour", tuple(COLOURS)), ("shape", SHAPES)):
            if not words[kind]:
                continue
            other = known[(known.index(words[kind]) + 1 + number) % len(known)]
            other = other if other != words[kind] else known[(known.index(other) + 1) % len(known)]
            for said, right in ((words[kind], True), (other, False)):
                text = caption.replace(words[kind], said)
                asked = about_regions(layout.name, sample.image, layout, {text: {kind: said}}, {0: text}, number)
                yield next(question for question in asked if question.kind == kind), right


def anchored(answers: Iterable[tuple[Question, bool, dict | None]]) -> list[Result]:
    """Measure the share of anchors that the judge decides rightly; empty without an answer.

    `extra` holds the mean probability of yes where it is right and where it is wrong, and how well these probabilities
    tell the two apart: the area under the curve, 0.5 for a judge that cannot.
    """
    known = [(question, right, answer["yes"]) for question, right, answer in answers if answer is not None]
    mean = RegionMean()
    for question, right, yes in known:
        mean.add(question.key, (yes > 0.5) == right)
    if not known:
        return []
    of = {right: [yes for _, is_right, yes in known if is_right == right] for right in (True, False)}
    about = {
        f"p_yes_where_{word}": float(np.mean(of[word == "right"])) for word in ("right", "wrong") if of[word == "right"]
    }
    result = mean.result(NAME, SOURCE)
    return [replace(result, extra=result.extra | about | {"area_under_curve": area_under_curve(of[True], of[False])})]


def area_under_curve(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """Return the probability that a right answer has a higher value than a wrong one; None without one of either."""
    if not right or not wrong:
        return None
    ranks = rankdata([*right, *wrong])[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def _word_of(caption: str, known: Sequence[str]) -> str:
    return next((word for word in caption.split() if word in known), "")
