"""Measure captions by CIDEr-D (arXiv 1411.5726): how much they say what references say, weighted by how rare it is.

    n-grams of 1 to 4 tokens --> count x log(samples / samples whose references hold the n-gram)
    caption, reference --> cosine of these weights, those of the caption cut to the reference's, x exp(-d^2 / 72)

d is the difference of their numbers of tokens. The score is 10 times the mean over the references and the four lengths:
0 to 10, though published tables often show 100 times of it. This is the form that COCO's evaluation calls CIDEr, with
the tokens of `caption_tokens`. Numbers of different sets cannot be compared, because the references of a set weight its
n-grams; an identical caption reaches 10 only if it has four tokens and an n-gram of each length that some sample lacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seg2any.evaluation.metrics.caption_tokens import caption_tokens
from seg2any.evaluation.metrics.result import GENERATED, Result, mean
from seg2any.system.errors import UserError

LONGEST = 4  # tokens of an n-gram
SIGMA = 6.0  # of the difference of lengths, tokens
MOST = 10.0  # of a score
Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Told:
    """A text as weights of its n-grams of each length, their norms, and its number of tokens."""

    weights: tuple[Mapping[Ngram, float], ...]
    norms: tuple[float, ...]
    tokens: int


class References:
    """The references of a set of samples, by sample key, and the weights of n-grams that follow from them."""

    def __init__(self, texts: Mapping[str, Sequence[str]]):
        """Weight n-grams. Raises UserError for one sample, whose n-grams would all weigh nothing."""
        if len(texts) < 2:
            raise UserError("CIDEr: needs references of at least two samples; evaluate more, or leave the metric out")
        self.keys = tuple(texts)
        self._split = {key: [caption_tokens(text) for text in own] for key, own in texts.items()}
        self._found: Counter[Ngram] = Counter()  # samples whose references hold an n-gram
        for own in self._split.values():
            self._found.update({gram for tokens in own for of_length in _counts(tokens) for gram in of_length})

    def score(self, key: str, caption: str) -> float:
        """Score a caption of the sample `key`: 0 to 10, and 0 for a caption without a word."""
        told = self._weighted(caption_tokens(caption))
        alike = [_likeness(told, self._weighted(tokens)) for tokens in self._split[key]]
        return MOST * sum(alike) / max(len(alike), 1)

    def _weighted(self, tokens: Sequence[str]) -> _Told:
        weights = tuple(
            {gram: count * math.log(len(self.keys) / max(self._found[gram], 1)) for gram, count in of_length.items()}
            for of_length in _counts(tokens)
        )
        return _Told(weights, tuple(math.hypot(*one.values()) for one in weights), len(tokens))


def cider(name: str, captions: Mapping[str, str], references: References, source: str = GENERATED) -> Result:
    """Average the scores of captions over all samples that have references; one without a caption scores 0.

    The interval is that of other samples whose n-grams weigh the same.
    """
    scores = {key: references.score(key, captions.get(key, "")) for key in references.keys}
    return replace(mean(name, scores, source=source), least=0.0, most=MOST)


def _counts(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """Count the n-grams of each length."""
    return [
        Counter(tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))
        for length in range(1, LONGEST + 1)
    ]


def _likeness(caption: _Told, reference: _Told) -> float:
    """Compare a caption with one reference: 0 to 1."""
    total = 0.0
    for own, wanted, norms in zip(
        caption.weights, reference.weights, zip(caption.norms, reference.norms, strict=True), strict=True
    ):
        common = sum(min(weight, wanted[gram]) * wanted[gram] for gram, weight in own.items() if gram in wanted)
        total += common / math.prod(norms) if common else 0.0
    return total / LONGEST * math.exp(-((caption.tokens - reference.tokens) ** 2) / (2 * SIGMA**2))
