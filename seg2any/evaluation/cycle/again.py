"""Find the regions of a layout again in an image, asked for in one of several ways.

phrases   by their captions; regions of one caption count as one
points    by the pixel that lies deepest inside
boxes     by their bounding boxes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from seg2any.evaluation.metrics.regions import boxes
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou
from seg2any.segment.segmenter import Prompt, Segmenter


@dataclass(frozen=True, eq=False)
class Question:
    """Regions, bool [N, H, W], and the prompt that asks for them in this order."""

    masks: np.ndarray
    prompt: Prompt

    @property
    def captions(self) -> tuple[str, ...]:
        """Return a name for each region."""
        return self.prompt.captions()


@dataclass(frozen=True, eq=False)
class Again:
    """Regions as wanted and as found, bool [N, H, W] each, and their IoU, float64 [N]."""

    question: Question
    found: np.ndarray
    iou: np.ndarray


def by_phrases(layout: Layout) -> Question:
    """Ask for each caption once."""
    names = tuple(dict.fromkeys(layout.captions))
    masks = [layout.visible[[one == name for one in layout.captions]].any(0) for name in names]
    return Question(np.array(masks, bool).reshape(-1, *layout.size), Prompt(phrases=names))


def by_points(layout: Layout) -> Question:
    """Ask by the deepest pixel of each region that has one."""
    masks, captions = _seen(layout)
    points = [[(*deepest(mask), 1)] for mask in masks]
    return Question(masks, Prompt(phrases=captions, points=np.array(points, np.float64).reshape(-1, 1, 3)))


def by_boxes(layout: Layout) -> Question:
    """Ask by the box of each region that has a pixel."""
    masks, captions = _seen(layout)
    return Question(masks, Prompt(phrases=captions, boxes=boxes(masks) if len(masks) else np.zeros((0, 4))))


WAYS: dict[str, Callable[[Layout], Question]] = {"phrases": by_phrases, "points": by_points, "boxes": by_boxes}


def find_again(image: np.ndarray, question: Question, segmenter: Segmenter) -> Again:
    """Ask a segmenter for the regions in an image uint8 [H, W, 3]."""
    size = question.masks.shape[1:]
    if not len(question.masks):
        return Again(question, np.zeros((0, *size), bool), np.zeros(0))
    found = resize_masks(segmenter.segment(image, question.prompt).masks, size)
    return Again(question, found, np.array([iou(a, b) for a, b in zip(question.masks, found, strict=True)]))


def deepest(mask: np.ndarray) -> tuple[float, float]:
    """Return the pixel of a mask that is farthest from its outline, as shares (x, y) of width and height."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (x + 0.5) / mask.shape[1], (y + 0.5) / mask.shape[0]


def _seen(layout: Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    kept = np.flatnonzero(layout.visible.any((1, 2)))
    return layout.visible[kept], tuple(layout.captions[n] for n in kept)
