"""The share of regions for which the judge says yes.

It comes with real images (ceiling) and with questions about another region's caption (floor): a judge that cannot tell
these apart measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from seg2any.evaluation.metrics.item import REAL, Item, layout_of
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.evaluation.vqa.answers import Answers, ask
from seg2any.evaluation.vqa.questions import KINDS, PROTOCOL, Question, about_caption, about_regions, swapped_captions
from seg2any.system.errors import UserError
from seg2any.system.patience import Patience

Words = Mapping[str, Mapping[str, str]]


def region_vqa(
    generated: Callable[[], Iterable[Item]],
    real: Callable[[], Iterable[Item]],
    answers: Answers,
    concurrency: int = 8,
    patience: Patience | None = None,
) -> list[Result]:
    """Ask about all regions: a Result per kind of question and source of images.

    `extra` counts the questions without an answer; they do not count, and the next evaluation asks them again.
    `generated` and `real` return their items from the start at every call; the items have layouts. Raises UserError if
    no question about a generated image has an answer.
    """

    def answered(questions: Iterable[Question], title: str) -> Iterator[tuple[Question, dict | None]]:
        return ask(tqdm(questions, title, unit=" questions", leave=False), answers, concurrency, patience)

    captions = dict.fromkeys(caption for item in generated() for caption in layout_of(item, PROTOCOL).captions)
    read = answered(map(about_caption, captions), "captions")
    words = {caption: answer or {} for caption, (_, answer) in zip(captions, read, strict=True)}
    unread = sum(not found for found in words.values())
    sources: dict[str, Iterator[Question]] = {
        GENERATED: _questions(generated(), words),
        REAL: _questions(real(), words),
        "captions of other regions": _swapped_questions(generated(), words),
    }
    results = [
        replace(result, extra=result.extra | {"captions_unread": unread})
        for source, questions in sources.items()
        for result in scored(answered(questions, source), source)
    ]
    if not any(result.source == GENERATED for result in results):
        raise UserError(f"{PROTOCOL}: no question about a generated image has an answer; check the judge and the masks")
    return results


def scored(answered: Iterable[tuple[Question, dict | None]], source: str) -> list[Result]:
    """Average the answers by kind of question; kinds without an answer are left out."""
    means = {kind: RegionMean() for kind in KINDS}
    certainties: dict[str, list[float]] = {kind: [] for kind in KINDS}
    unanswered = dict.fromkeys(KINDS, 0)
    by_text = dict.fromkeys(KINDS, 0)
    for question, answer in answered:
        if answer is None:
            unanswered[question.kind] += 1
            continue
        means[question.kind].add(question.key, answer["yes"] > 0.5)
        certainties[question.kind].append(answer["yes"])
        by_text[question.kind] += answer.get("by") == "text"
    results = []
    for kind, collected in means.items():
        if not collected.sums:
            continue
        result = collected.result(f"{PROTOCOL} {kind}", source)
        mean_yes = float(np.mean(certainties[kind]))
        counts = {"unanswered": unanswered[kind], "without_probabilities": by_text[kind], "mean_p_yes": mean_yes}
        results.append(replace(result, extra=result.extra | counts))
    return results


def _questions(items: Iterable[Item], words: Words) -> Iterator[Question]:
    for item in items:
        yield from about_regions(item.key, item.image, layout_of(item, PROTOCOL), words)


def _swapped_questions(items: Iterable[Item], words: Words) -> Iterator[Question]:
    for item in items:
        layout = layout_of(item, PROTOCOL)
        yield from about_regions(item.key, item.image, layout, words, swapped_captions(layout))
