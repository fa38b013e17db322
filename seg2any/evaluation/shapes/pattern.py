"""The pattern or the letter that fills a figure of the `shapes` world.

The renderer's own patterns are fitted over rotation and phase, its 26 capitals at the place and in the size that the
letter of a badge has.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

import cv2
import numpy as np

from seg2any.data import shapes_draw
from seg2any.data.shapes_draw import COLOURS, LETTER, PERIOD, Figure, draw_texture
from seg2any.evaluation.shapes.drawn import INK_SHARE, ink_share

WINDOW = 32  # pixels around the middle of a figure: a small error of the angle stays small
MAX_POINTS = 400
EXPLAINED = 0.3  # share of the variance that a pattern has to explain, else the verdict is "unclear"
STEPS = np.arange(6) / 6
ALPHABET = string.ascii_uppercase  # more letters than badges have, so that a scrawl is seldom taken for the right one
REACH = 4  # pixels by which a letter may be off its place, along each axis
UNSURE = 2  # pixels by which the centre of a badge that is partly hidden may be off


def detect_pattern(image: np.ndarray, core: np.ndarray, tone: np.ndarray) -> str:
    """Name the pattern: "plain", "striped", "dotted", "checkered" or "unclear".

    image  uint8 [H, W, 3]
    core   bool [H, W], the pixels to look at
    tone   [3], the figure's own colour
    """
    x, y = _points(core)
    ink = ink_share(np.float32(image[y, x]), tone)
    return _best(ink, ((name, fit) for name in ("striped", "dotted", "checkered") for fit in _rendered(name, x, y)))


def detect_letter(image: np.ndarray, core: np.ndarray, tone: np.ndarray, mask: np.ndarray) -> str:
    """Name the letter of a badge: "letter A" and so on for every capital, "plain" or "unclear".

    Arguments as of `detect_pattern`; place and size of the badge are those of the circle around `mask` bool [H, W].
    """
    y, x = np.nonzero(mask)
    centre, radius = cv2.minEnclosingCircle(np.stack([x, y], 1).astype(np.float32))
    y, x = np.nonzero(core)
    near = np.hypot(x - centre[0], y - centre[1]) <= LETTER + REACH
    if not near.any():  # another figure hides the middle
        return "unclear"
    y, x = y[near], x[near]
    ink = ink_share(np.float32(image[y, x]), tone)
    return _best(ink, _letters(x, y, centre, radius))


def _best(ink: np.ndarray, candidates: Iterator[tuple[str, np.ndarray]]) -> str:
    """Name the candidate whose ink shares [K, P] come closest to those seen [P]."""
    if (ink > 0.5).mean() < INK_SHARE:
        return "plain"
    best, error = "unclear", (1 - EXPLAINED) * ink.var()
    for name, rendered in candidates:
        smallest = ((rendered - ink) ** 2).mean(1).min()
        if smallest < error:
            best, error = name, smallest
    return best


def _points(core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pick at most MAX_POINTS pixels (x [P], y [P]) of a window in the middle of the core."""
    y, x = np.nonzero(core)
    middle = np.argmin(np.hypot(x - x.mean(), y - y.mean()))
    near = np.nonzero(np.hypot(x - x[middle], y - y[middle]) <= WINDOW)[0]
    chosen = near[:: -(-len(near) // MAX_POINTS)]
    return x[chosen], y[chosen]


def _rendered(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pattern at the points, once per angle: ink shares [phases, P]."""
    quarter = name != "striped"
    u, v = (phase.ravel()[:, None] * PERIOD for phase in np.meshgrid(STEPS, STEPS if quarter else STEPS[:1]))
    for angle in np.deg2rad(np.arange(0, 90 if quarter else 180, 5)):
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        yield shapes_draw.INK_SHARE[name](along + u, across + v)


def _letters(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radius: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every letter at the points, at shifts around its place: ink shares [shifts, P]."""
    shifts = range(-REACH, REACH + 1, 1 if radius < LETTER else 2)
    # The letter is drawn on a small canvas, moved by whole tokens: a letter's place is rounded to tokens.
    left, top = (int(low - REACH) // PERIOD * PERIOD for low in (x.min(), y.min()))
    size = (int(y.max()) - top + 1 + REACH, int(x.max()) - left + 1 + REACH)
    down, right = (shift.reshape(-1, 1) for shift in np.meshgrid(shifts, shifts, indexing="ij"))
    rows, columns = y - top + down, x - left + right
    for place in _places((centre[0] - left, centre[1] - top), radius):
        for letter in ALPHABET:
            badge = Figure("badge", "yellow", "plain", place, radius, letter=letter)
            share = ink_share(draw_texture(badge, size, np.s_[: size[0], : size[1]]), np.float32(COLOURS["yellow"]))
            yield f"letter {letter}", share[rows, columns]


def _places(centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """List where a badge may be whose circle is seen there: one centre for each place of its letter."""
    if radius < LETTER:
        return [centre]
    axes = ({PERIOD * round((at + off) / PERIOD) for off in (-UNSURE, 0, UNSURE)} for at in centre)
    return list(itertools.product(*axes))
