"""Overlap of wanted and found regions: mean over the regions of all images, by size, and of the outlines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from seg2any.evaluation.metrics.overlap import SIZES, band_width, boundary_iou, iou, is_thin, size_class
from seg2any.evaluation.metrics.result import RegionMean, Result
from seg2any.system.errors import UserError


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """The regions of one image of sample `key`: bool [N, H, W] as wanted and as found, in the same order."""

    key: str
    wanted: np.ndarray
    found: np.ndarray


def region_overlap(name: str, images: Iterable[FoundRegions], source: str = "generated") -> list[Result]:
    """`name`: mean IoU over regions; the same for small, medium, large and thin ones, as far as there are any, and for
    the band along the outlines (Boundary IoU, 2 % of the diagonal). Thin regions count by size too.
    Wanted regions without a pixel do not count.

    Raises UserError if no region is left.
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
        raise UserError(f"{name}: no region with a pixel in any image; check the masks")
    order = [name, f"{name}, outlines", *(f"{name}, {size}" for size in (*SIZES, "thin"))]
    return [means[kind].result(kind, source) for kind in order if kind in means]
