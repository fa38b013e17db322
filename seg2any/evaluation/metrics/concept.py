"""Concept mIoU: all instances of a region's noun phrase are found, and paired with the regions that it names.

    image, noun phrase --> instances --> paired one to one with the masks of the regions of that phrase --> IoU

Regions without an instance count 0. The model also says whether the concept is in the image at all, which is reported
as presence; it should be high for the phrases of an image and low for misleading ones. The pairing sees the masks, but
the judge does not: with a phrase that names one region it only chooses among the instances of that phrase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from seg2any.evaluation.judges.kept import KeptConcepts
from seg2any.evaluation.metrics.item import REAL, Item
from seg2any.evaluation.metrics.phrases import MISLEADING, SWAPPED, Wanted, misleading, pool_of, wanted
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.segment.merge import matched_iou
from seg2any.segment.sam3 import Instances
from seg2any.system.errors import UserError
from seg2any.system.nouns import noun_phrase

NAME, PRESENCE, SURPLUS = "concept mIoU", "concept presence", "concept, surplus instances"
Items = Callable[[], Iterable[Item]]


def concept_iou(generated: Items, real: Items, judge: KeptConcepts) -> list[Result]:
    """Measure the IoU of regions with instances of their noun phrases, with ceiling and controls.

    Surplus instances are those that are paired with no region, per phrase. `generated` and `real` return their items
    from the start at every call. Raises UserError if no region has a pixel.
    """
    pool = pool_of(generated(), NAME, noun_phrase)
    means: dict[tuple[str, str], RegionMean] = {}
    for source, items in ((GENERATED, generated()), (REAL, real())):
        for item in items:
            own = wanted(item, NAME, noun_phrase)
            if own.regions:
                _add(means, own, judge, source, pool)
    if (NAME, GENERATED) not in means:
        raise UserError(f"{NAME}: no region has a pixel in any image; check the masks")
    order = [(name, source) for source in (GENERATED, REAL, SWAPPED, MISLEADING) for name in (NAME, PRESENCE, SURPLUS)]
    return [
        means[key].result(*key, "lower" if key[0] == SURPLUS or key[1] in (SWAPPED, MISLEADING) else "higher")
        for key in order
        if key in means
    ]


def paired(masks: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the IoU of each wanted mask bool [N, h, w] with the instance of [M, h, w] that it is paired with, 0..1."""
    return matched_iou(masks, found)[1] if len(found) else np.zeros(len(masks))


def _add(
    means: dict[tuple[str, str], RegionMean], own: Wanted, judge: KeptConcepts, source: str, pool: Sequence[str]
) -> None:
    def add(name: str, where: str, value: float) -> None:
        means.setdefault((name, where), RegionMean()).add(own.key, value)

    found = _instances(own.image, list(own.regions), judge)
    masks = own.masks(next(iter(found.values())).masks.shape[1:])
    for phrase, of_phrase in masks.items():
        ious = paired(of_phrase, found[phrase].masks)
        for value in ious:
            add(NAME, source, value)
        add(PRESENCE, source, found[phrase].presence)
        add(SURPLUS, source, len(found[phrase].masks) - int((ious > 0).sum()))
    if source != GENERATED:
        return
    for phrase, other in own.swapped.items():
        for value in paired(masks[phrase], found[other].masks):
            add(NAME, SWAPPED, value)
    wrong = misleading(list(own.regions), pool)
    seen = _instances(own.image, list(dict.fromkeys(wrong.values())), judge)
    for phrase, other in wrong.items():
        add(PRESENCE, MISLEADING, seen[other].presence)
        for value in paired(masks[phrase], seen[other].masks):
            add(NAME, MISLEADING, value)


def _instances(image: np.ndarray, phrases: Sequence[str], judge: KeptConcepts) -> Mapping[str, Instances]:
    return dict(zip(phrases, judge.find(image, phrases), strict=True))
