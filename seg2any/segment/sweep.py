"""Measure which blocks and noise levels follow the regions of known layouts best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seg2any.layout import Layout
from seg2any.segment.attention import AttentionSegmenter
from seg2any.segment.attention_maps import label_map


@dataclass(frozen=True, eq=False)
class Swept:
    """The mean IoU over all regions and backgrounds of all images.

    iou      float64 [levels, blocks]
    ceiling  of the true masks, reduced to the token grid and enlarged again
    regions  number of regions and backgrounds
    """

    levels: tuple[float, ...]
    blocks: tuple[int, ...]
    iou: np.ndarray
    ceiling: float
    regions: int

    def table(self) -> str:
        """Return a table of blocks (columns) and noise levels (rows)."""
        lines = ["noise " + "".join(f"{f'block {block}':>10}" for block in self.blocks)]
        for level, row in zip(self.levels, self.iou, strict=True):
            lines.append(f"{level:5.2f} " + "".join(f"{value:10.3f}" for value in row))
        level, block = np.unravel_index(self.iou.argmax(), self.iou.shape)
        best = f"best: block {self.blocks[block]} at noise level {self.levels[level]:g}, mIoU {self.iou.max():.3f}"
        return "\n".join([*lines, f"{best}; ceiling of the token grid {self.ceiling:.3f}; {self.regions} regions"])


def sweep(
    samples: Sequence[tuple[np.ndarray, Layout]],
    background: str,
    levels: Sequence[float],
    segmenter_at: Callable[[float], AttentionSegmenter],
) -> Swept:
    """Name every pixel of each image by its layout's captions or as background; compare with the layout.

    samples       images uint8 [H, W, 3] and layouts, whose captions differ from each other and from `background`
    segmenter_at  returns the segmenter of a noise level; all have the same blocks
    """
    segmenters = [segmenter_at(level) for level in levels]
    values, ceilings = [[] for _ in levels], []
    for image, layout in samples:
        truth = torch.from_numpy(np.concatenate([layout.visible, layout.background[None]]))
        for of_level, segmenter in zip(values, segmenters, strict=True):
            maps = segmenter.maps_of_blocks(image, [*layout.captions, background])
            of_level.append(np.stack([region_iou(one, truth) for one in maps]))
        reduced = F.adaptive_avg_pool2d(truth[None].float(), maps.shape[-2:])[0]
        ceilings.append(region_iou(reduced, truth))
    iou = np.stack([np.concatenate(of_level, 1).mean(1) for of_level in values])
    return Swept(tuple(levels), segmenters[0].settings.blocks, iou, *_mean_and_count(ceilings))


def region_iou(maps: Tensor, truth: Tensor) -> np.ndarray:
    """Compute the IoU of each true mask [N, H, W] that has a pixel with the pixels of its map [N, h, w]."""
    labels = label_map(maps, truth.shape[1:])
    values = []
    for number, mask in enumerate(truth):
        if mask.any():
            seen = labels == number
            values.append(int((mask & seen).sum()) / int((mask | seen).sum()))
    return np.array(values)


def _mean_and_count(values: Sequence[np.ndarray]) -> tuple[float, int]:
    joined = np.concatenate(values)
    return float(joined.mean()), len(joined)
