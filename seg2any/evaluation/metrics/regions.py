"""Measure the overlap of wanted and found regions: mean, by size, and of outlines.

The class-agnostic mIoU asks a segmenter for each region where its mask is. As published, the prompt is the region
itself, as box and as mask: the number says whether the image has an outline there, and even an empty image reaches some
of it. So it always comes with the number of real images (ceiling) and two floors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from seg2any.evaluation.metrics.item import EMPTY, REAL, SHUFFLED, Item, grey, layout_of, shuffled
from seg2any.evaluation.metrics.overlap import SIZES, band_width, boundary_iou, is_thin, size_class
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou
from seg2any.segment.segmenter import Prompt, Segmenter
from seg2any.system.errors import UserError

NAME = "class-agnostic mIoU"


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """The regions of one image of sample `key`: bool [N, H, W] as wanted and as found."""

    key: str
    wanted: np.ndarray
    found: np.ndarray


def region_overlap(name: str, images: Iterable[FoundRegions], source: str = GENERATED) -> list[Result]:
    """Average the IoU over all regions, over those of one size, and over bands at the outlines.

    The results are called `name`, "name, outlines" (Boundary IoU, bands of 2 % of the diagonal), "name, small",
    "medium", "large" and "thin"; kinds without a region are left out. Thin regions count by size too. Wanted regions
    without a pixel do not count. Raises UserError if no region is left.
    """
    means: dict[str, RegionMean] = {}
    for image in images:
        for wanted, found in zip(image.wanted, image.found, strict=True):
            if not wanted.any():
                continue
            overlap = iou(wanted, found)
            outline = boundary_iou(wanted, found, band_width(wanted.shape))
            kinds = {name: overlap, f"{name}, {size_class(wanted)}": overlap, f"{name}, outlines": outline}
            if is_thin(wanted):
                kinds[f"{name}, thin"] = overlap
            for kind, value in kinds.items():
                means.setdefault(kind, RegionMean()).add(image.key, value)
    if not means:
        raise UserError(f"{name}: no region has a pixel in any image; check the masks")
    order = [name, f"{name}, outlines", *(f"{name}, {size}" for size in (*SIZES, "thin"))]
    return [means[kind].result(kind, source) for kind in order if kind in means]


def class_agnostic_iou(
    generated: Callable[[], Iterable[Item]], real: Callable[[], Iterable[Item]], segmenter: Segmenter
) -> list[Result]:
    """Measure the overlap of regions in generated images, with its ceiling and floors.

    Ceiling: real images, if there are any. Floors: grey images, and images of other samples if there are several.
    `generated` and `real` return their items from the start at every call; the items have layouts. Raises UserError as
    `region_overlap` does.
    """

    def measured(source: str, items: Iterable[Item]) -> list[Result]:
        return region_overlap(NAME, _found(items, segmenter), source)

    results = measured(GENERATED, generated())
    several = len(results[0].per_sample) > 1
    photos = iter(real())
    if (first := next(photos, None)) is not None:
        results += measured(REAL, chain([first], photos))
    results += measured(EMPTY, grey(generated()))
    return results + (measured(SHUFFLED, shuffled(generated())) if several else [])


def find_again(image: np.ndarray, layout: Layout, segmenter: Segmenter) -> Layout:
    """Ask the segmenter for each region of `layout` in an image uint8 [H, W, 3].

    No mask may be empty.
    """
    return segmenter.segment(image, Prompt(phrases=layout.captions, boxes=boxes(layout.masks), masks=layout.masks))


def boxes(masks: np.ndarray) -> np.ndarray:
    """Return left, top, right and bottom of masks bool [N, H, W] as shares, float64 [N, 4].

    No mask may be empty. As published, right and bottom are the last pixel inside, not the first outside.
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    left, top = columns.argmax(1), rows.argmax(1)
    right, bottom = width - 1 - columns[:, ::-1].argmax(1), height - 1 - rows[:, ::-1].argmax(1)
    return np.stack([left / width, top / height, right / width, bottom / height], 1)


def _found(items: Iterable[Item], segmenter: Segmenter) -> Iterator[FoundRegions]:
    for item in items:
        wanted = without_empty(layout_of(item, NAME))
        found = find_again(item.image, wanted, segmenter)
        yield FoundRegions(item.key, resize_masks(wanted.masks, found.size), found.masks)


def without_empty(layout: Layout) -> Layout:
    """Keep what is visible of the masks of a layout, where that has a pixel, with their captions."""
    kept = np.flatnonzero(layout.visible.any((1, 2)))
    captions = tuple(layout.captions[index] for index in kept)
    return Layout(layout.visible[kept], captions, layout.caption, overlap=layout.overlap)
