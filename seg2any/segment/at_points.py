"""Answer points by a segmenter that only finds all regions by itself: a baseline for one point."""

from __future__ import annotations

import numpy as np

from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.segment.coloring.segmenter import connected_to
from seg2any.segment.segmenter import Prompt, Segmenter


class AtPoints:
    """A segmenter of points that keeps, of all regions that another finds, the parts that hold a point.

    Masks have the size of the image; there are no scores.
    """

    def __init__(self, everything: Segmenter):
        self.everything = everything

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the region of each entry's points in an image uint8 [H, W, 3]; points beside it take their parts away.

        Raises UserError for other prompts.
        """
        prompt.check("a region at a point", ("points",))
        found = self.everything.segment(image, Prompt())
        size = image.shape[:2]
        regions = resize_masks(found.masks, size)
        masks = [_at(regions, points, size) for points in prompt.points]
        stacked = np.array(masks, bool).reshape(-1, *size)
        return Layout(stacked, prompt.captions(), source=found.source, overlap="share")


def _at(regions: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unite the parts of regions bool [N, H, W] at points of label 1, without those at points of label 0."""
    wanted = np.zeros(size, bool)
    for label, holds in ((1, True), (0, False)):
        for x, y, own in points:
            column, row = min(int(x * size[1]), size[1] - 1), min(int(y * size[0]), size[0] - 1)
            if own == label:
                for region in regions[regions[:, row, column]]:
                    wanted[connected_to(region, [(column, row)])] = holds
    return wanted
