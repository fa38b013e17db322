"""Choose the size at which a photo is trained, and bring photo and masks to it.

stretch   every photo becomes a square: the published behaviour
bucket    a size of nearly the same area and nearly the photo's proportions; what does not fit is cut off equally on
          both sides, from the photo and from its masks
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from seg2any.data.dataset import Sample
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError

ASPECTS = ("stretch", "bucket")
WIDEST = 2.0  # length / width of a bucket at most; longer photos are cut


def target_size(size: tuple[int, int], resolution: int, aspect: str, multiple: int) -> tuple[int, int]:
    """Return (H, W) at which a photo of `size` (H, W) is trained.

    multiple  the sides of a bucket are multiples of it, in pixels

    Raises UserError for an unknown aspect.
    """
    _check(aspect)
    if aspect == "stretch":
        return resolution, resolution
    wanted = math.log(size[0] / size[1])
    return min(bucket_sizes(resolution, multiple), key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - wanted))


@lru_cache
def bucket_sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """List the buckets (H, W), flat to tall: 1:2 to 2:1, at most resolution^2 pixels.

    Both sides are multiples of `multiple`. Each bucket is the widest of its height and the tallest of its width. Raises
    UserError if there is none.
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
    """Return the rows and columns of a photo of `size` that become `target`.

    stretch: all; bucket: the largest central part with the proportions of `target`, up to a pixel, as pixels are whole.
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
    """Bring a sample to `target` (H, W).

    The image is resized with PIL BILINEAR, as published, the masks with nearest-exact.

    A region may become empty; it is kept, so that regions and captions stay in order.
    """
    layout = sample.layout
    rows, columns = window(layout.size, target, aspect)
    image = Image.fromarray(np.ascontiguousarray(sample.image[rows, columns]))
    resized = np.asarray(image.resize((target[1], target[0]), Image.Resampling.BILINEAR))
    masks = resize_masks(layout.masks[:, rows, columns], target)
    return Sample(resized, replace(layout, masks=masks))


def _check(aspect: str) -> None:
    if aspect not in ASPECTS:
        raise UserError(f"data.aspect: {aspect!r} is not possible; choose one of {', '.join(ASPECTS)}")
