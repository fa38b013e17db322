"""Smooth a map along the edges of a picture (joint bilateral filter)."""

from __future__ import annotations

import numpy as np


def joint_bilateral(guide: np.ndarray, source: np.ndarray, diameter: int, by_color: float, by_place: float):
    """Average a map over near pixels of like colour, as OpenCV's filter of this name does to the last bit.

    guide              uint8 [H, W, 3]: colours differ by the sum over channels of absolute differences
    source             uint8 [H, W]
    diameter           in pixels, of the disc around a pixel; an even one counts as the next greater
    by_color, by_place standard deviations, in grey levels and in pixels

    Borders mirror the picture without their own pixels. Returns uint8 [H, W].
    """
    radius, (height, width) = max(diameter // 2, 1), source.shape
    edge = ((radius, radius), (radius, radius))
    guides, sources = np.pad(guide.astype(np.int16), (*edge, (0, 0)), "reflect"), np.pad(source, edge, "reflect")
    of_color = np.exp(-(np.arange(3 * 255 + 1) ** 2) / (2 * by_color**2))
    total, weights = np.zeros(source.shape), np.zeros(source.shape)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy > radius * radius:
                continue
            there = (slice(radius + dy, radius + dy + height), slice(radius + dx, radius + dx + width))
            difference = np.abs(guides[there] - guide).sum(-1)
            weight = of_color[difference] * np.exp(-(dx * dx + dy * dy) / (2 * by_place**2))
            total += weight * sources[there]
            weights += weight
    return np.rint(total / weights).astype(np.uint8)
