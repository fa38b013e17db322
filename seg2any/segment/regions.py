"""Cut maps on the token grid to regions at the size of the image.

Shape suffixes: N maps, h w token grid, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seg2any.segment.attention_maps import enlarged, label_map, min_max

FLAT = 8  # grey levels; a photo whose channels vary no more shows nothing


def is_flat(image: np.ndarray) -> bool:
    """Tell whether a photo uint8 [H, W, 3] has one colour everywhere, but for noise."""
    return int(np.ptp(image, axis=(0, 1)).max()) <= FLAT


def above_threshold(maps: Tensor, rest: Tensor, threshold: float, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Cut each map [N, h, w], scaled to 0..1, at a threshold, and where none of the maps `rest` is greater.

    Returns masks bool [N, H, W], which may overlap, and scores float32 [N].
    """
    others = [enlarged(one, size) for one in rest]
    masks, scores = np.zeros((len(maps), *size), dtype=bool), np.zeros(len(maps), np.float32)
    for number, one in enumerate(maps):
        inside = enlarged(min_max(one.flatten(), 0).unflatten(0, one.shape), size) > threshold
        large = enlarged(one, size)
        for other in others:
            inside &= large > other
        masks[number], scores[number] = inside.numpy(), confidence(large, inside)
    return masks, scores


def by_greatest(maps: Tensor, rest: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Give every pixel to the greatest of the maps [N, h, w], or to none where one of `rest` is greater still.

    Returns masks bool [N, H, W] and scores float32 [N].
    """
    labels = label_map(torch.cat([maps, rest]), size)
    masks = np.stack([(labels == number).numpy() for number in range(len(maps))])
    scores = [confidence(enlarged(one, size), labels == number) for number, one in enumerate(maps)]
    return masks, np.array(scores, np.float32)


def confidence(large: Tensor, inside: Tensor) -> float:
    """Compare the means of a map [H, W] inside and outside of a mask: in / (in + out).

    0.5 says nothing and 1 is sure. An empty mask gets 0, one that covers everything 0.5.
    """
    if not inside.any():
        return 0.0
    if inside.all():
        return 0.5
    within, without = float(large[inside].mean()), float(large[~inside].mean())
    return within / (within + without)


def boxes_of(masks: Tensor) -> Tensor:
    """Return left, top, right and bottom of masks bool [N, H, W], ends excluded: float32 [N, 4].

    A mask without a pixel has a box of zeros.
    """
    ends = []
    for axis in (1, 2):
        inside = masks.any(axis).byte()
        ends.append((inside.argmax(1), inside.shape[1] - inside.flip(1).argmax(1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).float() * masks.flatten(1).any(1, keepdim=True)
