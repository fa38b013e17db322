"""Which size a photo is trained at, and how it and its masks get there.

stretch   everything becomes a square: the published behaviour
bucket    the size of nearly the same area and nearly the photo's proportions; what does not fit is cut off on both
          sides alike, from masks as from the image
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from seg2any.data.dataset import Sample
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError

ASPECTS = ("stretch", "bucket")
WIDEST = 2.0  # longer photos are cut to this proportion


def target_size(size: tuple[int, int], resolution: int, aspect: str, multiple: int) -> tuple[int, int]:
    """(H, W) at which a photo of `size` (H, W) is trained; `multiple` is that of both sides in a bucket, in pixels.

    Raises UserError for an unknown aspect.
    """
    _check(aspect)
    if aspect == "stretch":
        return resolution, resolution
    wanted = math.log(size[0] / size[1])
    return min(bucket_sizes(resolution, multiple), key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - wanted))


@lru_cache
def bucket_sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """All (H, W) of bucket: sides are multiples, proportions 1:2 to 2:1, never more pixels than resolution squared.

    From flat to tall. Of equal heights the widest, of equal widths the tallest. Raises UserError if there is none.
    """
    side = resolution // multiple
    if side < 1:
        raise UserError(f"resolution: {resolution} is less than one token of {multiple} pixels; raise it")
    fitting = [(height, side * side // height) for height in range(1, side * side + 1)]
    tallest = {width: height for height, width in fitting}
    return tuple(
        (height * multiple, width * multiple)
        for height, width in fitting
        if tallest[width] == height and 1 / WIDEST <= height / width <= WIDEST
    )


def window(size: tuple[int, int], target: tuple[int, int], aspect: str) -> tuple[slice, slice]:
    """Rows and columns of a photo of `size` that become `target`: all, or the largest central part of its proportions.

    Whole pixels, so what is left to stretch is less than one.
    """
    _check(aspect)
    if aspect == "stretch":
        return slice(0, size[0]), slice(0, size[1])
    scale = min(size[0] / target[0], size[1] / target[1])
    sides = [min(side, max(1, round(goal * scale))) for side, goal in zip(size, target, strict=True)]
    starts = [(side - kept) // 2 for side, kept in zip(size, sides, strict=True)]
    rows, columns = (slice(start, start + kept) for start, kept in zip(starts, sides, strict=True))
    return rows, columns


def fit(sample: Sample, target: tuple[int, int], aspect: str) -> Sample:
    """The sample at `target` (H, W): the image with PIL BILINEAR, as published, the masks with nearest-exact.

    A region may come out empty; it stays, so that regions and captions keep their order.
    """
    layout = sample.layout
    rows, columns = window(layout.size, target, aspect)
    image = Image.fromarray(np.ascontiguousarray(sample.image[rows, columns]))
    resized = np.asarray(image.resize((target[1], target[0]), Image.Resampling.BILINEAR))
    masks = resize_masks(layout.masks[:, rows, columns], target)
    return Sample(resized, Layout(masks, layout.captions, layout.caption, layout.seed, layout.name))


def _check(aspect: str) -> None:
    if aspect not in ASPECTS:
        raise UserError(f"data.aspect: {aspect!r} is not possible; choose one of {', '.join(ASPECTS)}")
