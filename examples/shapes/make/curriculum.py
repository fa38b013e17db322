"""The scenes of each stage of the base's training.

texture   one figure that fills most of a small image: all tokens show a pattern or a letter
figure    one to three whole figures
scene     whole scenes
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from seg2any.data.shapes import Scene, ShapesDataset, held_out
from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, LETTERS, PATTERNS, PERIOD, SHAPES, Figure, Size, draw_texture
from seg2any.diffusion.flow import TimestepWeighting


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    sizes       (H, W) in pixels of the images of a batch, one after the other
    batch_size  images per step
    kinds       how often a step draws each kind of scene
    noise       density of noise levels
    """

    sizes: tuple[Size, ...]
    steps: int
    batch_size: int
    kinds: dict[str, float]
    noise: TimestepWeighting
    learning_rate: float = 1e-3


# The pattern of a figure is decided at noise levels of 0.8 to 0.97: below, the noisy image shows it.
HIGH = TimestepWeighting("logit_normal", logit_mean=-1.6, logit_std=1.1)
SQUARE = (256, 256)
STAGES = {
    "texture": Stage(((96, 96),), 1500, 32, {"large": 1.0}, HIGH, 1.5e-3),
    "figure": Stage(((128, 128), (96, 160), (160, 96)), 450, 32, {"single": 0.8, "few": 0.2}, HIGH),
    "scene": Stage(
        (SQUARE, SQUARE, (192, 320), SQUARE, (320, 208)),
        350,
        16,
        {"single": 0.2, "normal": 0.65, "crowded": 0.15},
        HIGH,
    ),
}
KINDS = {
    "single": {"kind": "single"},
    "few": {"kind": "normal", "entities": (2, 3)},
    "normal": {"kind": "normal"},
    "crowded": {"kind": "crowded"},
    "badges": {"kind": "badges", "entities": (2, 5)},
}
BADGES, PLAIN = 0.2, 0.1  # shares of the large figures; the rest has a pattern
TILED = 0.25  # share of images that are covered with one letter


@dataclass(frozen=True)
class Tiled(Scene):
    """A badge that is larger than the image, with its letter again and again, so that all tokens show it."""

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw image uint8 [H, W, 3] and mask bool [1, H, W], both covered by the badge."""
        (badge,), step, everything = self.figures, 2 * PERIOD, tuple(slice(0, side) for side in self.size)
        middles = itertools.product(*(range(PERIOD, side, step) for side in self.size))
        drawn = [draw_texture(replace(badge, centre=(x, y)), self.size, everything) for y, x in middles]
        return np.round(np.min(drawn, 0)).astype(np.uint8), np.ones((1, *self.size), bool)


def scenes_of(kind: str, n: int, size: Size) -> list[Scene]:
    """Make n training scenes of a kind in one size."""
    if kind == "large":
        return [large(index, size) for index in range(n)]
    data = ShapesDataset("train", n, size=size, **KINDS[kind])
    return [data.scene(index) for index in range(n)]


def large(index: int, size: Size) -> Scene:
    """Make a scene of one figure about as large as a square image, of a combination that training may contain."""
    rng = np.random.default_rng((17, size[0], index))
    while True:
        kind, figure = (Tiled, _letters(rng, size[0])) if rng.random() < TILED else (Scene, _large_figure(rng, size[0]))
        if not held_out(figure):
            return kind((figure,), str(rng.choice(list(BACKGROUNDS))), size)


def _large_figure(rng: np.random.Generator, size: int) -> Figure:
    colour, kind = str(rng.choice(list(COLOURS))), rng.random()
    if kind < BADGES:
        radius = size * rng.uniform(0.22, 0.48)
        centre = tuple(rng.uniform(0.9 * radius, size - 0.9 * radius, 2))
        return Figure("badge", colour, "plain", centre, radius, letter=_letter(rng))
    pattern = "plain" if kind < BADGES + PLAIN else str(rng.choice(PATTERNS[1:]))
    shape = str(rng.choice([shape for shape in SHAPES if shape != "badge"]))
    centre = tuple(size * rng.uniform(0.25, 0.75, 2))
    turn, stretch = rng.uniform(-math.pi, math.pi), rng.uniform(0.75, 1.33)
    return Figure(shape, colour, pattern, centre, size * rng.uniform(0.3, 0.7), turn, stretch)


def _letters(rng: np.random.Generator, size: int) -> Figure:
    return Figure("badge", str(rng.choice(list(COLOURS))), "plain", (0.0, 0.0), size, letter=_letter(rng))


def _letter(rng: np.random.Generator) -> str:
    return str(rng.choice(list(LETTERS)))


@functools.lru_cache
def _strangers() -> tuple[str, ...]:
    data = ShapesDataset("train", 500, "single")
    return tuple(data.scene(index).figures[0].caption for index in range(len(data)))


def crowd_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write the caption of an image that shows this scene's figure among up to seven others, or many."""
    background = f"on a {scene.background} background"
    others = list(rng.choice(_strangers(), rng.integers(1, 9)))
    if len(others) == 8:
        return f"many figures {background}"
    others.insert(int(rng.integers(len(others) + 1)), scene.figures[0].caption)
    return f"{', '.join(others[:-1])} and {others[-1]} {background}"
