"""The pattern or the letter that fills a figure of the `shapes` world.

The renderer's own patterns are fitted over rotation and phase, its 26 capitals at the place and in the size of a badge.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import cv2
import numpy as np

from seg2any.data import shapes_draw
from seg2any.data.shapes_draw import COLOURS, PERIOD, Figure, draw_texture
from seg2any.evaluation.shapes.drawn import INK_SHARE, ink_share

WINDOW = 32  # pixels around the middle of a figure: a small error of the angle stays small
MAX_POINTS = 400
EXPLAINED = 0.3  # share of the variance that a pattern has to explain, else the verdict is "unclear"
STEPS = np.arange(6) / 6
ALPHABET = string.ascii_uppercase  # more letters than badges have, so that a scrawl is seldom taken for the right one
REACH = 4  # pixels by which a letter may be off its place, along each axis
SMALL = 24  # radius in pixels below which the shifts are single pixels, above it pairs


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
    quarter, period = name != "striped", PERIOD * (1.4 if name == "checkered" else 1.0)
    u, v = (phase.ravel()[:, None] * period for phase in np.meshgrid(STEPS, STEPS if quarter else STEPS[:1]))
    for angle in np.deg2rad(np.arange(0, 90 if quarter else 180, 5)):
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        yield shapes_draw.INK_SHARE[name](along + u, across + v)


def _letters(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radius: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every letter at the points, at shifts around the centre: ink shares [shifts, P]."""
    shifts = range(-REACH, REACH + 1, 1 if radius < SMALL else 2)
    # The letter is drawn on a small canvas, moved by an even number of pixels: coordinates are rounded half to even.
    left, top = (int(low - REACH) // 2 * 2 for low in (x.min(), y.min()))
    size = (int(y.max()) - top + 1 + REACH, int(x.max()) - left + 1 + REACH)
    down, right = (shift.reshape(-1, 1) for shift in np.meshgrid(shifts, shifts, indexing="ij"))
    rows, columns = y - top + down, x - left + right
    for letter in ALPHABET:
        badge = Figure("badge", "yellow", "plain", (centre[0] - left, centre[1] - top), radius, letter=letter)
        share = ink_share(draw_texture(badge, size, np.s_[: size[0], : size[1]]), np.float32(COLOURS["yellow"]))
        yield f"letter {letter}", share[rows, columns]
