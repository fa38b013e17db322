"""Draw visual prompts for training: a point, a box, a scribble or the mask itself of some regions of an image."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from seg2any.segment.segmenter import Prompt
from seg2any.segment.xsam import prompts
from seg2any.segment.xsam.pictures import Frame
from seg2any.segment.xsam.regions import POINTS

STROKES = 2  # straight parts of a scribble
DABS = 24  # points of each part


def draw_prompts(masks: np.ndarray, frame: Frame, chance: random.Random) -> Tensor:
    """Draw a prompt for each of the masks bool [N, H, W], each with a pixel: bool [N, S, S] in SAM's square.

    A prompt has at most as many pixels as the model reads, so that nothing else is drawn later.
    """
    drawn = [prompts.drawn(chance.choice(FORMS)(mask, chance), frame)[0] for mask in masks]
    return torch.stack([_thinned(one, chance) for one in drawn])


def _point(mask: np.ndarray, chance: random.Random) -> Prompt:
    return Prompt(points=_shares(_some(mask, 1, chance), mask))


def _box(mask: np.ndarray, chance: random.Random) -> Prompt:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / (width, height, width, height)
    return Prompt(boxes=edges[None])


def _scribble(mask: np.ndarray, chance: random.Random) -> Prompt:
    """Join drawn pixels by straight lines, of which the parts inside of the mask are kept."""
    corners = _some(mask, STROKES + 1, chance).astype(float)
    steps = np.linspace(0, 1, DABS)[:, None]
    parts = [start + steps * (end - start) for start, end in zip(corners, corners[1:], strict=False)]
    places = np.concatenate(parts).round().astype(int)
    return Prompt(points=_shares(places[mask[places[:, 0], places[:, 1]]], mask))


def _whole(mask: np.ndarray, chance: random.Random) -> Prompt:
    """Show the mask itself; one that may vanish in the square is shown by its box."""
    return Prompt(masks=mask[None]) if mask.sum() >= POINTS else _box(mask, chance)


FORMS: Sequence[Callable[[np.ndarray, random.Random], Prompt]] = (_point, _box, _scribble, _whole)


def _some(mask: np.ndarray, count: int, chance: random.Random) -> np.ndarray:
    """Draw pixels of a mask: (row, column) int [count, 2]."""
    places = np.argwhere(mask)
    return places[[chance.randrange(len(places)) for _ in range(count)]]


def _shares(places: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make the points [1, P, 3] of one region of pixels [P, 2]."""
    y, x = ((places + 0.5) / mask.shape).T
    return np.stack([x, y, np.full(len(places), prompts.INSIDE)], 1)[None]


def _thinned(mask: Tensor, chance: random.Random) -> Tensor:
    places = mask.nonzero()
    if len(places) <= POINTS:
        return mask
    kept = places[chance.sample(range(len(places)), POINTS)]
    thin = torch.zeros_like(mask)
    thin[kept[:, 0], kept[:, 1]] = True
    return thin
