"""Measure how well images fit their global captions: CLIP score and human preference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from PIL import Image

from seg2any.evaluation.judges.clip import Clip, Preference
from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.evaluation.metrics.result import GENERATED, Result, mean
from seg2any.evaluation.metrics.sets import batches
from seg2any.system.errors import UserError


def clip_score(items: Iterable[Item], clip: Clip, source: str = GENERATED) -> list[Result]:
    """Measure the CLIP score: 100 times the mean cosine of image and global caption, at least 0.

    The first result's captions keep their end token, the second's are cut as published. `extra` counts the captions
    that were too long. The published number is of group 0. Raises UserError for a sample without a global caption.
    """
    whole: dict[str, list[float]] = {}
    published: dict[str, list[float]] = {}
    too_long = set()
    for batch in batches(items):
        captions = [_caption("CLIP score", item) for item in batch]
        images = clip.of_images([item.image for item in batch])
        for scores, texts in (
            (whole, clip.of_captions(captions)),
            (published, clip.of_captions_as_published(captions)),
        ):
            for item, cosine in zip(batch, (images * texts).sum(1), strict=True):
                scores.setdefault(item.key, []).append(100 * float(cosine))
        lengths = map(len, clip.tokenizer(captions, verbose=False)["input_ids"])
        too_long |= {item.key for item, length in zip(batch, lengths, strict=True) if length > clip.tokens}
    results = (
        _mean_of_samples(name, scores, source)
        for name, scores in (("CLIP score", whole), ("CLIP score, captions cut as published", published))
    )
    return [
        replace(one, value=max(one.value, 0.0), least=0.0, extra={"captions_too_long": len(too_long)})
        for one in results
    ]


def preference_score(name: str, items: Iterable[Item], score: Preference, source: str = GENERATED) -> Result:
    """Average a score of images and their global captions.

    Raises UserError for a sample without a global caption.
    """
    scores: dict[str, list[float]] = {}
    for item in items:
        caption = _caption(name, item)
        scores.setdefault(item.key, []).append(float(score(Image.fromarray(item.image), caption)))
    return _mean_of_samples(name, scores, source)


def _mean_of_samples(name: str, scores: dict[str, list[float]], source: str) -> Result:
    return mean(name, {key: float(np.mean(values)) for key, values in scores.items()}, source=source)


def _caption(metric: str, item: Item) -> str:
    caption = layout_of(item, metric).caption
    if caption is None:
        raise UserError(f"{metric}: sample {item.key!r} has no global caption; leave the metric out for this data set")
    return caption
