"""Cut painted colours to regions without any prompt, always in the same way.

    colours --> few main colours, by a coarse histogram --> every pixel to the nearest --> connected parts

Black is the background. Parts that are smaller than SACap's rule keeps are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import uniform_filter

from seg2any.segment.coloring.points import clipped_similarity
from seg2any.segment.regions import confidence

BIN = 16  # grey levels of a bin of the histogram
BLACK = np.zeros((1, 3), np.float32)


@dataclass(frozen=True)
class AutomaticSettings:
    """Settings of the search for all regions.

    least_share  of the image's pixels, for a region to be kept
    apart        least Euclidean distance of two main colours, and of a main colour from black, in grey levels;
                 the paints of training lie 91 apart and more
    """

    least_share: float = 0.01
    apart: float = 80


def regions_of_colors(colors: np.ndarray, settings: AutomaticSettings) -> tuple[np.ndarray, np.ndarray]:
    """Find the regions in painted colours uint8 [H, W, 3].

    Returns masks bool [N, H, W], which share no pixel, the largest first, and scores float32 [N].
    """
    calm = cv2.medianBlur(np.ascontiguousarray(colors), 3)
    least = max(1, round(settings.least_share * calm.shape[0] * calm.shape[1]))
    centers = np.concatenate([BLACK, main_colors(calm, settings.apart, least)])
    owner = nearest_center(calm, centers)
    masks = [part for number in range(1, len(centers)) for part in _parts(owner == number, least)]
    masks.sort(key=lambda mask: (-int(mask.sum()), int(mask.argmax())))
    scores = [_score(colors, mask) for mask in masks]
    return np.array(masks, dtype=bool).reshape(-1, *owner.shape), np.array(scores, np.float32)


def main_colors(colors: np.ndarray, apart: float, least: int) -> np.ndarray:
    """Choose the colours that many pixels have, the most frequent first, apart from each other and from black.

    least  number of pixels near a colour for it to be chosen

    Returns float32 [K, 3].
    """
    pixels = colors.reshape(-1, 3)
    bins = 256 // BIN
    codes = np.ravel_multi_index((pixels // BIN).T, (bins,) * 3)
    counts = np.bincount(codes, minlength=bins**3)
    sums = np.stack([np.bincount(codes, weights=pixels[:, c], minlength=bins**3) for c in range(3)])
    near = uniform_filter(counts.reshape((bins,) * 3).astype(float), 3, mode="constant").ravel() * 27
    middle = sums / np.maximum(counts, 1)
    chosen = [BLACK[0]]
    for code in np.lexsort((np.arange(bins**3), -counts, -near.round())):
        if near[code] + 0.5 < least:
            break
        if counts[code] and np.linalg.norm(np.array(chosen) - middle[:, code], axis=1).min() >= apart:
            chosen.append(middle[:, code].astype(np.float32))
    return np.array(chosen[1:], np.float32).reshape(-1, 3)


def nearest_center(colors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the number of the nearest of colours [K, 3] for each pixel [H, W, 3]; the first of equally near ones."""
    pixels = colors.astype(np.float32)
    owner, least = np.zeros(pixels.shape[:2], np.int64), np.full(pixels.shape[:2], np.inf, np.float32)
    for number, center in enumerate(centers):
        distance = np.square(pixels - center).sum(2)
        closer = distance < least
        owner[closer], least[closer] = number, distance[closer]
    return owner


def _parts(mask: np.ndarray, least: int) -> list[np.ndarray]:
    """Split a mask into its connected parts of at least `least` pixels."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel(), minlength=count)
    return [labels == number for number in range(1, count) if sizes[number] >= least]


def _score(colors: np.ndarray, mask: np.ndarray) -> float:
    """Tell how much more alike its mean colour the pixels of a region are than all others, see `confidence`."""
    distance = np.linalg.norm(colors.astype(np.float32) - colors[mask].mean(0, dtype=np.float32), axis=2)
    return confidence(clipped_similarity(torch.from_numpy(distance)), torch.from_numpy(mask))
