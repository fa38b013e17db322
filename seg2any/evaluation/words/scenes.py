"""Make a benchmark of words out of scenes of `shapes` that no training has seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from seg2any.data.shapes import ShapesDataset
from seg2any.data.words import ShapesWords, WordedScene, joined
from seg2any.evaluation.metrics.panoptic import Segments
from seg2any.evaluation.words.photos import AskedPhrase, Categories, Photo

PER_KIND = 1  # phrases and questions of each kind of a scene
CATEGORIES = Categories(ShapesWords.categories, ShapesWords.stuff)


def read_scenes(count: int) -> Iterator[Photo]:
    """Yield the first scenes of the test split: phrases of each kind, a description, and all segments."""
    words = ShapesWords(ShapesDataset("test", count))
    for index in range(count):
        worded = words[index]
        told = [] if worded.told is None else zip(worded.told.spans, worded.told.regions, strict=True)
        yield Photo(
            words.key(index),
            lambda worded=worded: worded.image,
            tuple(_phrases(worded, np.random.default_rng(index))),
            tuple((worded.told.text[a:b], worded.masks[region]) for (a, b), region in told),
            "" if worded.told is None else worded.told.text,
            segments_of(worded),
        )


def segments_of(worded: WordedScene) -> Segments:
    """Number the regions of a scene from 1; they share no pixel."""
    labels = np.zeros(worded.image.shape[:2], np.int64)
    for number, mask in enumerate(worded.masks, start=1):
        labels[mask] = number
    return Segments(labels, dict(enumerate(worded.names, start=1)))


def _phrases(worded: WordedScene, rng: np.random.Generator) -> Iterator[AskedPhrase]:
    for kinds, question in ((worded.phrases, False), (worded.questions, True)):
        for kind, found in sorted(kinds.items()):
            for place in rng.permutation(len(found))[:PER_KIND]:
                one = found[place]
                name = f"questions, {kind}" if question else kind
                yield AskedPhrase(one.text, joined(worded, one.regions), question=question, kind=name)
