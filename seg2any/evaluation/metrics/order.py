"""Order and crowding: is the region that lies in front the one that is seen where two overlap?

For data sets whose regions hide each other. Two regions that share pixels are in order if the judge, asked for both
captions, finds the front one in more of these pixels than the other; as many of each count one half. The overlap mIoU
looks at the shared pixels only: IoU of the front region there, found and wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from seg2any.evaluation.judges.kept import KeptSegmenter
from seg2any.evaluation.metrics.item import REAL, Item, layout_of
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou
from seg2any.system.errors import UserError

ORDER, OVERLAP = "order of overlapping regions", "overlap mIoU"
LEAST = 0.001  # of the image: smaller overlaps are left out
Items = Callable[[], Iterable[Item]]


def order_of_regions(generated: Items, real: Items, judge: KeptSegmenter) -> list[Result]:
    """Measure both numbers over all pairs, with real images as ceiling.

    Raises UserError if no two regions with different captions hide each other in any image.
    """
    results = []
    for source, items in ((GENERATED, generated()), (REAL, real())):
        means = {ORDER: RegionMean(), OVERLAP: RegionMean()}
        for item in items:
            for right, overlap in _pairs(item, judge):
                means[ORDER].add(item.key, right)
                means[OVERLAP].add(item.key, overlap)
        results += [mean.result(name, source) for name, mean in means.items() if mean.sums]
    if not any(result.source == GENERATED for result in results):
        raise UserError(f"{ORDER}: no two regions hide each other; leave the metric out for this data set")
    return results


def hidden_pairs(layout: Layout) -> Iterator[tuple[int, int]]:
    """Yield (behind, in front) for regions of different captions, of which the second hides part of the first."""
    if layout.overlap != "hide":
        return
    visible = layout.visible
    for front in range(len(layout.masks)):
        for behind in range(front):
            shared = layout.masks[behind] & visible[front]
            if layout.captions[behind] != layout.captions[front] and shared.mean() >= LEAST:
                yield behind, front


def _pairs(item: Item, judge: KeptSegmenter) -> Iterator[tuple[float, float]]:
    layout = layout_of(item, ORDER)
    pairs = list(hidden_pairs(layout))
    if not pairs:
        return
    phrases = list(
        dict.fromkeys(text for text, seen in zip(layout.captions, layout.visible, strict=True) if seen.any())
    )
    found = judge.find(item.image, phrases)
    masks, visible = (resize_masks(each, found.shape[1:]) for each in (layout.masks, layout.visible))
    place = {phrase: number for number, phrase in enumerate(phrases)}
    for behind, front in pairs:
        shared = masks[behind] & visible[front]
        if layout.captions[behind] not in place or not shared.any():
            continue
        of_front, of_behind = (found[place[layout.captions[number]]] & shared for number in (front, behind))
        more, less = np.count_nonzero(of_front), np.count_nonzero(of_behind)
        yield 0.5 if more == less else float(more > less), iou(shared, of_front)
