"""Draw the `shapes` world: outlines, patterns and backgrounds of figures.

The judge of the `shapes` benchmark reads the numbers here; changing them changes every measured bar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 46),
    "orange": (244, 133, 28),
    "yellow": (250, 220, 50),
    "lime": (160, 222, 50),
    "green": (28, 140, 66),
    "cyan": (40, 200, 210),
    "blue": (38, 84, 214),
    "purple": (134, 52, 176),
    "pink": (248, 122, 184),
    "brown": (124, 72, 38),
}
INK = (34, 34, 40)  # second tone of every pattern and every letter, so that a pattern never changes the colour's name
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (158, 158, 158),
    "sand": (222, 204, 168),
    "mint": (188, 222, 204),
    "sky": (190, 214, 240),
    "lilac": (208, 196, 228),
    "slate": (98, 110, 122),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "badge")
LETTERS = "ABEHKMRSTX"
PERIOD = 16  # pixels per repeat of a pattern along both axes of the image: a token of the embedded model
LETTER = 24.0  # radius in pixels from which a badge has room for a letter in 2 x 2 tokens
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Figure:
    """One entity of a scene.

    centre, radius  (x, y) and length in pixels
    angle           in radians
    stretch         width / height
    wobble          relative amplitude of an irregular outline
    stroke          ring width / radius
    """

    shape: str
    colour: str
    pattern: str
    centre: tuple[float, float]
    radius: float
    angle: float = 0.0
    stretch: float = 1.0
    wobble: float = 0.0
    stroke: float = 0.4
    letter: str = ""

    @property
    def caption(self) -> str:
        """Description of the figure: colour, pattern and shape, or colour and letter of a badge."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        if self.shape == "badge":
            return f"{article} {self.colour} badge with the letter {self.letter}"
        texture = "" if self.pattern == "plain" else f" {self.pattern}"
        return f"{article} {self.colour}{texture} {self.shape}"


def draw_alpha(figure: Figure, size: Size) -> np.ndarray:
    """Draw the figure's coverage alone: float32 [H, W] in [0, 1]."""
    alpha, *hole = (canvas.astype(np.float32) / 255 for canvas in _canvases(figure, size))
    return alpha - hole[0] if hole else alpha


def covers_any(figure: Figure, taken: np.ndarray) -> bool:
    """Tell without drawing whether the figure covers one of some pixels of `taken` bool [H, W]; False: perhaps.

    The pixels lie in the centre and half way between it and the outline, or in the middle of a ring's stroke. Not
    examined are figures so small or wobbly that rounding might put such a pixel outside, and those near the border.
    """
    stretch = math.sqrt(figure.stretch)
    across = figure.radius * min(stretch, 1 / stretch)
    if across < 10 or (figure.shape == "ring" and (figure.wobble or figure.stroke * across < 5)):
        return False
    reach = figure.radius * (1 - figure.stroke / 2 if figure.shape == "ring" else 0.5)
    spread = 1.2 * reach * max(stretch, 1 / stretch)
    if not all(spread <= at <= side - 1 - spread for at, side in zip(figure.centre, taken.shape[::-1], strict=True)):
        return False
    cos, sin = reach * math.cos(figure.angle), reach * math.sin(figure.angle)
    for x, y in _PROBES[figure.shape]:
        x, y = x * stretch, y / stretch
        if taken[round(sin * x + cos * y + figure.centre[1]), round(cos * x - sin * y + figure.centre[0])]:
            return True
    return False


def draw_mask(figure: Figure, size: Size) -> np.ndarray:
    """Tell where the figure's coverage is more than one half, without floats: bool [H, W]."""
    canvas, *hole = _canvases(figure, size)
    return (cv2.subtract(canvas, hole[0]) if hole else canvas) > 127


def _canvases(figure: Figure, size: Size) -> list[np.ndarray]:
    """Fill the figure's outline, and the hole of a ring: uint8 [H, W], 255 inside."""
    outlines = [_outline(figure)]
    if figure.shape == "ring":
        outlines.append(_outline(figure, scale=1.0 - figure.stroke))
    return [_fill(points, size) for points in outlines]


def draw_texture(figure: Figure, size: Size, window: tuple[slice, slice]) -> np.ndarray:
    """Draw colour and pattern in a window (rows, columns): float32 [h, w, 3] in 0..255."""
    y, x = np.mgrid[window].astype(np.float32)
    ink = INK_SHARE[figure.pattern](x, y)
    if figure.shape == "badge":
        ink = np.maximum(ink, _letter(figure, size)[window])
    colour, tone = np.float32(COLOURS[figure.colour]), np.float32(INK)
    return colour + ink[..., None] * (tone - colour)


def draw_background(name: str, size: Size) -> np.ndarray:
    """Draw a tone, 6 % lighter at the top: float32 [H, W, 3] in 0..255."""
    shade = np.linspace(1.03, 0.97, size[0], dtype=np.float32)[:, None, None]
    return np.clip(np.float32(BACKGROUNDS[name]) * shade, 0, 255) * np.ones((1, size[1], 1), np.float32)


def _fill(points: np.ndarray, size: Size) -> np.ndarray:
    shift = 4
    canvas = np.zeros(size, np.uint8)
    fixed = np.round(points * (1 << shift)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, lineType=cv2.LINE_AA, shift=shift)
    return canvas


def _outline(figure: Figure, scale: float = 1.0) -> np.ndarray:
    """Return the outline as a polygon, float [P, 2] in pixels, (x, y)."""
    points = _UNIT_OUTLINES[figure.shape]
    if figure.wobble:
        theta = np.arctan2(points[:, 1], points[:, 0])
        ripple = np.sin(7 * theta + 5 * figure.angle) + 0.6 * np.sin(13 * theta + 3 * figure.radius)
        points = points * (1 + figure.wobble * ripple)[:, None]
    stretch = np.sqrt(figure.stretch)
    points = points * (stretch, 1 / stretch) * (figure.radius * scale)
    cos, sin = np.cos(figure.angle), np.sin(figure.angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + figure.centre


def _soft_step(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + distance, 0, 1)


def _triangle_wave(x: np.ndarray, period: float) -> np.ndarray:
    """Return the signed distance in pixels to the nearest edge of a 50 % stripe pattern."""
    return period / 4 - np.abs((x / period) % 1 - 0.5) * period


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, v = (x / PERIOD) % 1 - 0.5, (y / PERIOD) % 1 - 0.5
    return _soft_step(0.3 * PERIOD - np.hypot(u, v) * PERIOD)


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = _triangle_wave(x, PERIOD), _triangle_wave(y, PERIOD)
    return _soft_step(np.sign(a * b) * np.minimum(np.abs(a), np.abs(b)))


INK_SHARE = {
    "plain": lambda x, y: np.zeros_like(x),
    "striped": lambda x, y: _soft_step(_triangle_wave(x + y, PERIOD) - 1.0),
    "dotted": _dots,
    "checkered": _checks,
}


def _letter(figure: Figure, size: Size) -> np.ndarray:
    """Draw an upright capital in the middle of the badge: share of ink, float32 [H, W].

    It lies in the 2 x 2 tokens around the centre, rounded to tokens, so that a letter looks alike to the embedded model
    everywhere; in a small badge, which has no room for that, it is about as high as the radius.
    """
    canvas = np.zeros(size, np.uint8)
    middle, height = figure.centre, figure.radius
    if figure.radius >= LETTER:
        middle, height = [PERIOD * round(at / PERIOD) for at in figure.centre], 1.6 * PERIOD
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(2, round(height / 6))
    (wide, high), _ = cv2.getTextSize(figure.letter, font, 1.0, 1)
    scale = height / high
    corner = (round(middle[0] - wide * scale / 2), round(middle[1] + high * scale / 2))
    cv2.putText(canvas, figure.letter, corner, font, scale, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def _polar(radius: np.ndarray | float, theta: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], 1)


def _polygon(corners: np.ndarray, per_edge: int = 24) -> np.ndarray:
    """Insert points along the edges between corners [K, 2], so that an outline can wobble."""
    steps = np.linspace(0, 1, per_edge, endpoint=False)[None, :, None]
    return (corners[:, None] * (1 - steps) + np.roll(corners, -1, 0)[:, None] * steps).reshape(-1, 2)


def _unit_outlines() -> dict[str, np.ndarray]:
    """Return the outlines of all shapes, inside about the unit disc, y down."""
    turn = np.linspace(0, 2 * np.pi, 144, endpoint=False)
    up = -np.pi / 2
    circle = _polar(1.0, turn)
    star = _polar(np.tile([1.05, 0.46], 5), up + np.arange(10) * np.pi / 5)
    heart = np.stack([16 * np.sin(turn) ** 3, -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn))], 1)
    return {
        "circle": circle,
        "ring": circle,
        "badge": circle,
        "square": _polygon(_polar(1.1, up / 2 + np.arange(4) * np.pi / 2)),
        "triangle": _polygon(_polar(1.15, up + np.arange(3) * 2 * np.pi / 3)),
        "star": _polygon(star, 12),
        "heart": heart / 15.5,
    }


_UNIT_OUTLINES = _unit_outlines()
# Of each outline, (x, y) of the centre, but for rings, and of 16 points
_PROBES = {
    name: [(0.0, 0.0)] * (name != "ring") + list(map(tuple, points[:: len(points) // 16][:16].tolist()))
    for name, points in _UNIT_OUTLINES.items()
}
