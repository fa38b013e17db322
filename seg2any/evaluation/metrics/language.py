"""Language-guided mIoU: an image is segmented by the captions of its regions, and compared with their masks.

    image, caption --> segmenter --> found mask
    IoU of the found mask with all regions of that caption together

The judge gets no box and no mask, so the number tests shape and meaning at once. Beside it stand real images (ceiling)
and two controls in which the words are wrong: the mask found for another caption of the image, and for a phrase that is
not in it. Where these come near, the judge does not know the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from seg2any.evaluation.judges.kept import KeptSegmenter
from seg2any.evaluation.metrics.item import REAL, Item
from seg2any.evaluation.metrics.phrases import MISLEADING, SWAPPED, Wanted, misleading, pool_of, wanted
from seg2any.evaluation.metrics.regions import FoundRegions, region_overlap
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou

NAME = "language-guided mIoU"
GAIN = f"{NAME}, gained by the right words"
Items = Callable[[], Iterable[Item]]


def language_iou(generated: Items, real: Items, judge: KeptSegmenter) -> list[Result]:
    """Measure the overlap of what the captions mean with their masks, with ceiling and controls.

    Regions of one caption count as one. The last result is the mean of IoU with the right words less IoU with another
    caption of the image. `generated` and `real` return their items from the start at every call. Raises UserError if
    no region has a pixel.
    """
    results = region_overlap(NAME, _found(generated(), judge), GENERATED)
    real_regions = list(_found(real(), judge))
    results += region_overlap(NAME, real_regions, REAL) if real_regions else []
    pool = pool_of(generated(), NAME)
    means = {name: RegionMean() for name in (SWAPPED, MISLEADING, GAIN)}
    for each in generated():
        _add_controls(means, wanted(each, NAME), judge, pool)
    for source in (SWAPPED, MISLEADING):
        if means[source].sums:
            results.append(means[source].result(NAME, source, "lower"))
    if means[GAIN].sums:
        results.append(means[GAIN].result(GAIN, GENERATED))
    return results


def seen_regions(item: Item, judge: KeptSegmenter) -> np.ndarray:
    """Return where the judge sees each region of an item's layout, bool [N, H, W] of the image's size."""
    own = wanted(item, NAME)
    found = dict(zip(own.regions, judge.find(item.image, list(own.regions)), strict=True))
    size = item.image.shape[:2]
    nothing = np.zeros(size, bool)
    return np.stack(
        [resize_masks(found[text][None], size)[0] if text in found else nothing for text in item.layout.captions]
    )


def _found(items: Iterable[Item], judge: KeptSegmenter) -> Iterator[FoundRegions]:
    for item in items:
        own = wanted(item, NAME)
        if not own.regions:
            continue
        found = judge.find(item.image, list(own.regions))
        unions = [masks.any(0) for masks in own.masks(found.shape[1:]).values()]
        yield FoundRegions(item.key, np.stack(unions), found)


def _add_controls(means: dict[str, RegionMean], own: Wanted, judge: KeptSegmenter, pool: list[str]) -> None:
    if not own.regions:
        return
    phrases = list(own.regions)
    found = dict(zip(phrases, judge.find(own.image, phrases), strict=True))
    size = found[phrases[0]].shape
    unions = {phrase: masks.any(0) for phrase, masks in own.masks(size).items()}
    for phrase, other in own.swapped.items():
        swapped, right = (iou(unions[phrase], found[asked]) for asked in (other, phrase))
        if unions[phrase].any():
            means[SWAPPED].add(own.key, swapped)
            means[GAIN].add(own.key, right - swapped)
    wrong = misleading(phrases, pool)
    asked = list(dict.fromkeys(wrong.values()))
    if not asked:
        return
    seen = dict(zip(asked, judge.find(own.image, asked), strict=True))
    for phrase, other in wrong.items():
        if unions[phrase].any():
            means[MISLEADING].add(own.key, iou(unions[phrase], seen[other]))
