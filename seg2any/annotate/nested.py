"""Areas, boxes and containment of masks, from their run lengths alone: nothing is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def area(runs: np.ndarray) -> int:
    """Count the pixels of a mask, given as run lengths int64 [R]."""
    return int(runs[1::2].sum())


def box(runs: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the box around a mask that is not empty, in pixels."""
    ends = np.cumsum(runs)
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    left, right = int(starts[0] // height), int((stops[-1] - 1) // height)
    if (starts // height != (stops - 1) // height).any():  # a run that goes on in the next column touches both edges
        return left, 0, right - left + 1, height
    top, bottom = int((starts % height).min()), int(((stops - 1) % height).max())
    return left, top, right - left + 1, bottom - top + 1


def shared(runs: np.ndarray, other: np.ndarray) -> int:
    """Count the pixels that two masks have in common."""
    edges, before = _inside_before(other)
    ends = np.cumsum(runs)
    at = np.interp(np.concatenate([[0], ends]), edges, before)  # slopes are 0 and 1, so the numbers are exact
    return int(np.diff(at)[1::2].sum())


def top_level(masks: Sequence[np.ndarray], inside: float, height: int) -> list[int]:
    """Return the numbers of the masks that lie in no other one, ascending.

    inside  share of a mask's pixels in a larger one from which it is nested
    height  of the photo, in pixels

    The largest come first, so a mask is compared with those that are kept; of equal ones the first is kept.
    """
    areas = [area(runs) for runs in masks]
    boxes = [box(runs, height) if own else (0, 0, 0, 0) for runs, own in zip(masks, areas, strict=True)]
    kept: list[int] = []
    for number in sorted(range(len(masks)), key=lambda one: (-areas[one], one)):
        least = inside * areas[number]
        near = (other for other in kept if _common(boxes[number], boxes[other]) >= least)
        if not any(shared(masks[number], masks[other]) >= least for other in near):
            kept.append(number)
    return sorted(kept)


def _common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Count the pixels that two boxes have in common."""
    ends = zip(one[:2], other[:2], one[2:], other[2:], strict=True)
    sides = (min(a + size, b + length) - max(a, b) for a, b, size, length in ends)
    return math.prod(max(0, side) for side in sides)


def _inside_before(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where runs end, ascending, and how many of the mask's pixels lie before each such place."""
    length, is_inside = runs[runs > 0], (np.arange(len(runs)) % 2 == 1)[runs > 0]
    return (
        np.concatenate([[0], np.cumsum(length)]),
        np.concatenate([[0], np.cumsum(np.where(is_inside, length, 0))]),
    )
