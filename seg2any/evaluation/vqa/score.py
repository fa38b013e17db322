"""Scores of regions out of a judge's answers.

soft       the mean probability of yes by kind of question, and by region the geometric mean of its questions: a region
           that is wrong in one thing is wrong
published  the share of yes by kind, see `seg2any.evaluation.vqa.published`

They come with real images (ceiling), with questions about another region's caption and about phrases that are not in
the image (floors), and with anchors, which tell whether the judge is the same as in another run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from seg2any.evaluation.metrics.item import REAL, Item, layout_of
from seg2any.evaluation.metrics.phrases import MISLEADING, SWAPPED, misleading
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.evaluation.vqa import published
from seg2any.evaluation.vqa.anchors import anchored, anchors
from seg2any.evaluation.vqa.answers import Answers, ask
from seg2any.evaluation.vqa.questions import (
    KINDS,
    PROMPTS_SHA256,
    PROTOCOL,
    Question,
    about_caption,
    about_regions,
    swapped_captions,
)
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.patience import Patience

Words = Mapping[str, Mapping[str, str]]
Answered = Iterable[tuple[Question, dict | None]]
LEAST = 1e-4  # probability of yes in a geometric mean, which one answer of 0 would end otherwise


@dataclass(frozen=True)
class Mode:
    """A way to ask and to score.

    name     of the protocol, with which its numbers begin
    prompts  digest of the prompts
    words    whether the judge first picks the words for attributes out of each caption
    about    key, image, layout, words, captions to ask for, number of the image -> questions
    scored   questions with answers, source -> results
    """

    name: str
    prompts: str
    words: bool
    about: Callable[[str, np.ndarray, Layout, Words, Mapping[int, str] | None, int], Iterator[Question]]
    scored: Callable[[Answered, str], list[Result]]


def region_vqa(
    generated: Callable[[], Iterable[Item]],
    real: Callable[[], Iterable[Item]],
    answers: Answers,
    concurrency: int = 8,
    patience: Patience | None = None,
    mode: str = "soft",
) -> list[Result]:
    """Ask about all regions: a Result per kind of question and source of images.

    `extra` counts the questions without an answer; they do not count, and the next evaluation asks them again.
    `generated` and `real` return their items from the start at every call; the items have layouts. Raises UserError if
    no question about a generated image has an answer.
    """
    chosen = MODES[mode]

    def answered(questions: Iterable[Question], title: str) -> Iterator[tuple[Question, dict | None]]:
        return ask(tqdm(questions, title, unit=" questions", leave=False), answers, concurrency, patience)

    captions = list(dict.fromkeys(text for item in generated() for text in layout_of(item, chosen.name).captions))
    words: dict[str, Mapping[str, str]] = {}
    if chosen.words:
        read = answered(map(about_caption, captions), "captions")
        words = {caption: answer or {} for caption, (_, answer) in zip(captions, read, strict=True)}
    unread = sum(not found for found in words.values())

    def questions(items: Iterable[Item], asked_of: Callable[[Layout], Mapping[int, str] | None]) -> Iterator[Question]:
        for number, item in enumerate(items):
            layout = layout_of(item, chosen.name)
            yield from chosen.about(item.key, item.image, layout, words, asked_of(layout), number)

    sources: dict[str, Iterator[Question]] = {
        GENERATED: questions(generated(), lambda layout: None),
        REAL: questions(real(), lambda layout: None),
        SWAPPED: questions(generated(), swapped_captions),
        MISLEADING: questions(generated(), lambda layout: misleading_captions(layout, captions)),
    }
    results = [
        replace(result, extra=result.extra | {"captions_unread": unread})
        for source, asked in sources.items()
        for result in chosen.scored(answered(asked, source), source)
    ]
    if not any(result.source == GENERATED for result in results):
        raise UserError(
            f"{chosen.name}: no question about a generated image has an answer; check the judge and the masks"
        )
    known = list(anchors())
    replies = answered((question for question, _ in known), "anchors")
    return results + anchored(
        (question, right, answer) for (question, right), (_, answer) in zip(known, replies, strict=True)
    )


def soft_scores(answered: Answered, source: str) -> list[Result]:
    """Average probabilities of yes: by region (geometric mean of its questions), then by kind of question.

    Kinds without an answer are left out, as are regions of which a question has none.
    """
    means = {kind: RegionMean() for kind in KINDS}
    counts = {kind: {"unanswered": 0, "without_probabilities": 0, "share_of_yes": 0} for kind in KINDS}
    regions: dict[tuple, list[float | None]] = {}
    for question, answer in answered:
        of_region = regions.setdefault((question.key, question.region), [])
        of_region.append(None if answer is None else answer["yes"])
        if answer is None:
            counts[question.kind]["unanswered"] += 1
            continue
        means[question.kind].add(question.key, answer["yes"])
        counts[question.kind]["without_probabilities"] += answer.get("by") == "text"
        counts[question.kind]["share_of_yes"] += answer["yes"] > 0.5
    whole = RegionMean()
    for (key, _), values in regions.items():
        if None not in values:
            whole.add(key, geometric_mean(values))
    results = [whole.result(f"{PROTOCOL} region", source)] if whole.sums else []
    for kind, collected in means.items():
        if collected.sums:
            result = collected.result(f"{PROTOCOL} {kind}", source)
            about = counts[kind] | {"share_of_yes": counts[kind]["share_of_yes"] / result.extra["regions"]}
            results.append(replace(result, extra=result.extra | about))
    return results


def published_scores(answered: Answered, source: str) -> list[Result]:
    """Count regions with a yes, by kind; attributes of a region whose subject is not there are wrong."""
    means = {kind: RegionMean() for kind in published.PROMPTS}
    unanswered = dict.fromkeys(published.PROMPTS, 0)
    there: dict[tuple, bool] = {}
    for question, answer in answered:
        if answer is None:
            unanswered[question.kind] += 1
            continue
        place = (question.key, question.region)
        if question.kind == "spatial":
            there[place] = answer["yes"] > 0.5
        if place in there:  # else nobody knows whether the subject is there
            means[question.kind].add(question.key, there[place] and answer["yes"] > 0.5)
    return [
        replace(result, extra=result.extra | {"unanswered": unanswered[kind]})
        for kind, mean in means.items()
        if mean.sums
        for result in [mean.result(f"{published.NAME} {kind}", source)]
    ]


def geometric_mean(values: Iterable[float | None]) -> float:
    """Compute the geometric mean of probabilities, each taken for at least LEAST."""
    return math.exp(float(np.mean([math.log(max(value, LEAST)) for value in values])))


def misleading_captions(layout: Layout, pool: Sequence[str]) -> dict[int, str]:
    """Give each region a phrase that is not in the image, see `misleading`."""
    wrong = misleading(list(dict.fromkeys(layout.captions)), pool)
    return {index: wrong[caption] for index, caption in enumerate(layout.captions) if caption in wrong}


MODES: Mapping[str, Mode] = {
    "soft": Mode(PROTOCOL, PROMPTS_SHA256, True, about_regions, soft_scores),
    "published": Mode(
        published.NAME,
        published.PROMPTS_SHA256,
        False,
        lambda key, image, layout, words, asked, number: published.about_boxes(key, image, layout, asked, number),
        published_scores,
    ),
}
