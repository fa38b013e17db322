"""Sources of masks: the JSON of SA-1B beside each photo, or any `Segmenter`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.annotate.draft import Draft, Region
from seg2any.data.dataset import SampleError
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.document import read_json
from seg2any.layout.rle import compressed, decode_runs, encode_rle
from seg2any.segment.segmenter import Prompt, Segmenter

SA1B = "sa1b"


def read_sa1b(draft: Draft) -> None:
    """Take the masks of NAME.json beside the photo, with their ids.

    Raises SampleError and LayoutError for a file that is missing or damaged, or that describes another size.
    """
    path = Path(draft.photo.path).with_suffix(".json")
    document = read_json(path)
    entries = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise SampleError(
            f"{path}: it has no list of annotations, as SA-1B's json has; write one, or use other --masks"
        )
    draft.regions = [_region(f"{path}: annotations[{n}]", entry, draft.size) for n, entry in enumerate(entries)]
    if len({region.id for region in draft.regions}) < len(draft.regions):
        raise SampleError(f"{path}: two annotations have the same id; number them")
    draft.masks_by = "SA-1B"


def _region(where: str, entry: dict, size: tuple[int, int]) -> Region:
    segmentation, number, score = entry.get("segmentation"), entry.get("id"), entry.get("predicted_iou")
    if type(number) is not int:
        raise SampleError(f"{where}: id is {number!r}; write a whole number")
    runs, own = decode_runs(where, segmentation if isinstance(segmentation, dict) else {})
    if own != size:
        raise SampleError(f"{where}: the mask is {own[1]}x{own[0]}, the photo {size[1]}x{size[0]}; segment it again")
    counts = segmentation["counts"]
    is_score = isinstance(score, int | float) and math.isfinite(score)
    return Region(number, counts if isinstance(counts, str) else compressed(runs), score if is_score else None)


@dataclass(frozen=True)
class SegmenterMasks:
    """Masks that a method of `segment` finds.

    open_segmenter  loads the method
    prompt          what it is asked
    name            of the method and its model
    """

    open_segmenter: Callable[[], Segmenter]
    prompt: Prompt
    name: str

    def __call__(self) -> Callable[[Draft], None]:
        """Load the method; return the stage."""
        segmenter = self.open_segmenter()

        def find(draft: Draft) -> None:
            found = segmenter.segment(draft.image, self.prompt)
            draft.regions = regions_of(found, draft.size)
            draft.caption, draft.masks_by = found.caption, found.source or self.name

        return find


def regions_of(found: Layout, size: tuple[int, int]) -> list[Region]:
    """Return the regions of a layout that have a pixel, at (H, W) pixels; ids are their places, from 1 on."""
    masks = resize_masks(found.masks, size)
    scores = [None] * len(masks) if found.scores is None else found.scores.tolist()
    return [
        Region(number, compressed(np.array(encode_rle(mask)["counts"])), score, caption)
        for number, (mask, score, caption) in enumerate(zip(masks, scores, found.captions, strict=True), 1)
        if mask.any()  # what was not found
    ]
