"""Segment by painted colours: around points, in boxes, by phrases with colours of their own, or everything.

phrases   each is painted in a colour that the words name; a mask per phrase
points    a mask per region, connected to its points
boxes     a mask for what fills the box
nothing   every instance that was painted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
import torch

from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.segment.coloring.automatic import BLACK, AutomaticSettings, nearest_center, regions_of_colors
from seg2any.segment.coloring.paints import Legend
from seg2any.segment.coloring.points import (
    PointSettings,
    clipped_similarity,
    region_of_box,
    region_of_points,
)
from seg2any.segment.regions import confidence
from seg2any.segment.segmenter import Prompt

METHOD = "coloring"
TAKEN = (("phrases",), ("points",), ("boxes",), ())


class Paints(Protocol):
    """A painter of photos: adapters of a flow model, or one of the published networks."""

    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        """Paint a photo uint8 [H, W, 3]: uint8 [h, w, 3]."""


@dataclass(frozen=True)
class Choices:
    """Settings that turn colours into regions.

    entries    most phrases of a legend; more phrases are painted in several pictures
    legend     its phrases are asked for where a prompt asks for nothing
    connected  whether a region holds only what is connected to its points
    """

    points: PointSettings = field(default_factory=PointSettings)
    automatic: AutomaticSettings = field(default_factory=AutomaticSettings)
    entries: int = 4
    connected: bool = True
    legend: Legend | None = None


class ColoringSegmenter:
    """A painter whose colours are cut to regions.

    Masks have the size of the image. `scores` compare how similar colours are inside and outside of a region:
    in / (in + out), so 0.5 says nothing and 1 is sure.
    """

    def __init__(self, painter: Paints, choices: Choices | None = None, source: str = METHOD):
        self.painter, self.choices, self.source = painter, choices or Choices(), source

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the regions of a prompt in an image uint8 [H, W, 3]. Raises UserError for categories and masks."""
        prompt.check(METHOD, *TAKEN)
        if prompt.points is None and prompt.boxes is None and prompt.phrases is not None:
            return self._layout(image, prompt.phrases, *self._by_words(image, prompt.phrases))
        if not prompt.given and self.choices.legend is not None:
            legend = self.choices.legend
            found = self._by_legend(image, legend)
            return self._layout(image, legend.phrases, *_stacked(found, found[0][0].shape))
        colors = self.painter.colors(image)
        if not prompt.given:
            masks, scores = regions_of_colors(colors, self.choices.automatic)
            return self._layout(image, [f"region {n}" for n in range(1, len(masks) + 1)], masks, scores)
        found = self._by_points(colors, prompt.points) if prompt.boxes is None else self._by_boxes(colors, prompt.boxes)
        return self._layout(image, prompt.captions(), *_stacked(found, colors.shape[:2]))

    def _by_points(self, colors: np.ndarray, points: np.ndarray) -> list[tuple[np.ndarray, float]]:
        found = []
        for own in points:
            inside, outside = (_pixels(own[own[:, 2] == label], colors.shape[:2]) for label in (1, 0))
            if not inside:
                found.append((np.zeros(colors.shape[:2], bool), 0.0))
                continue
            mask, similarity = region_of_points(colors, inside, outside, self.choices.points)
            mask = connected_to(mask, inside) if self.choices.connected else mask
            found.append((mask, _score(similarity, mask)))
        return found

    def _by_boxes(self, colors: np.ndarray, boxes: np.ndarray) -> list[tuple[np.ndarray, float]]:
        height, width = colors.shape[:2]
        found = []
        for box in boxes * (width, height, width, height):
            mask, similarity = region_of_box(colors, tuple(box.tolist()), self.choices.points)
            found.append((mask, _score(similarity, mask)))
        return found

    def _by_words(self, image: np.ndarray, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Paint the phrases in colours of their own, a few in a picture, in an order that theirs does not change."""
        order, found = sorted(range(len(phrases)), key=lambda n: phrases[n]), {}
        for start in range(0, len(order), self.choices.entries):
            part = order[start : start + self.choices.entries]
            legend = Legend.of([phrases[n] for n in part])
            found |= dict(zip(part, self._by_legend(image, legend), strict=True))
        size = found[0][0].shape if found else image.shape[:2]
        return _stacked([found[n] for n in range(len(phrases))], size)

    def _by_legend(self, image: np.ndarray, legend: Legend) -> list[tuple[np.ndarray, float]]:
        """Give every pixel to the nearest of a legend's colours, or to black."""
        colors = self.painter.colors(image, legend.text)
        owner = nearest_center(cv2.medianBlur(colors, 3), np.concatenate([BLACK, legend.colors]))
        found = []
        for number, color in enumerate(legend.colors.astype(np.float32), start=1):
            distance = torch.from_numpy(np.linalg.norm(colors - color, axis=2))
            found.append((owner == number, _score(clipped_similarity(distance).numpy(), owner == number)))
        return found

    def _layout(self, image: np.ndarray, captions: Sequence[str], masks: np.ndarray, scores: np.ndarray) -> Layout:
        large = resize_masks(masks, image.shape[:2])
        notes = () if large.any() else ("no painted colour stands out",)
        return Layout(large, tuple(captions), scores=scores, source=self.source, overlap="share", notes=notes)


def connected_to(mask: np.ndarray, points: Sequence[tuple[int, int]]) -> np.ndarray:
    """Keep the parts of a mask that hold one of the pixels (x, y); all of it if none does."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    wanted = {int(parts[y, x]) for x, y in points} - {0}
    return np.isin(parts, list(wanted)) if wanted else mask


def _pixels(points: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the pixels (x, y) of points in shares of width and height."""
    edges = np.array(size[::-1])
    return [tuple(one) for one in np.minimum((points[:, :2] * edges).astype(int), edges - 1).tolist()]


def _score(similarity: np.ndarray, mask: np.ndarray) -> float:
    return confidence(torch.from_numpy(similarity), torch.from_numpy(mask))


def _stacked(found: Sequence[tuple[np.ndarray, float]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    masks = np.array([mask for mask, _ in found], dtype=bool).reshape(-1, *size)
    return masks, np.array([score for _, score in found], np.float32)
