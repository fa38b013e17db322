"""Make `shapes`: deterministic scenes of captioned figures, whose truth is known.

Scene `i` of a split depends on (seed, split, kind, i) only. A tenth of the (colour, shape, pattern) combinations never
occur in the training split (`held_out`), so a test scene can ask for something that was never seen.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seg2any.data.dataset import Annotation, MaskStack, Sample
from seg2any.data.shapes_draw import (
    BACKGROUNDS,
    COLOURS,
    LETTERS,
    PATTERNS,
    SHAPES,
    Figure,
    Size,
    covers_any,
    draw_alpha,
    draw_background,
    draw_mask,
    draw_texture,
)
from seg2any.layout import Layout
from seg2any.layout.overlap import visible_masks
from seg2any.system.errors import UserError

DRAWING = 2  # raise it when scenes of the same parameters come out differently: fingerprints contain it
SPLITS = ("train", "val", "test")
MIN_VISIBLE = 0.55  # of a figure's own area, after everything above it is drawn
MIXED = ("normal",) * 8 + ("thin", "crowded")  # scene i of kind "mixed" is of kind MIXED[i % 10]
MAX_LISTED = 8  # more figures are not named one by one in the global caption
MARGIN = 4  # pixels between a figure and the image border
WIDE = 1.15  # figures of a long image are at most as large as those of a square whose edge is this times its short side
KEPT_SCENES = 2**15  # in memory, a kilobyte or two each: placing figures takes longer than drawing them


@dataclass(frozen=True)
class Kind:
    """Settings of one kind of scene.

    entities  least and greatest number; jagged, thin: shares of figures; overlapping: share of scenes
    """

    entities: tuple[int, int]
    jagged: float = 0.15
    thin: float = 0.1
    overlapping: float = 0.25
    badges_only: bool = False


KINDS = {
    "normal": Kind(entities=(1, 8)),
    "single": Kind(entities=(1, 1)),
    "crowded": Kind(entities=(12, 20), thin=0.0, overlapping=0.0),
    "badges": Kind(entities=(12, 20), jagged=0.0, thin=0.0, overlapping=0.0, badges_only=True),
    "thin": Kind(entities=(1, 6), jagged=0.5, thin=0.7, overlapping=0.0),
}


@dataclass(frozen=True)
class Scene:
    """Figures in z order (later ones on top) on a named background, in an image of `size` (H, W)."""

    figures: tuple[Figure, ...]
    background: str
    size: Size = (256, 256)

    @property
    def caption(self) -> str:
        """Caption of the whole image, in the form that the embedded model has learned."""
        if len(self.figures) > MAX_LISTED:
            return f"many figures on a {self.background} background"
        return f"{listed([figure.caption for figure in self.figures])} on a {self.background} background"

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions of the figures, in z order."""
        return tuple(figure.caption for figure in self.figures)

    def masks(self) -> np.ndarray:
        """Draw visible, disjoint masks only: bool [N, H, W]."""
        return visible_masks([draw_mask(figure, self.size) for figure in self.figures])

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw image uint8 [H, W, 3] and visible, disjoint masks bool [N, H, W]."""
        alphas = [draw_alpha(figure, self.size) for figure in self.figures]
        image = draw_background(self.background, self.size)
        for figure, alpha in zip(self.figures, alphas, strict=True):
            window = _bounds(alpha)
            image[window] += alpha[window][..., None] * (draw_texture(figure, self.size, window) - image[window])
        return np.round(image).astype(np.uint8), visible_masks([alpha > 0.5 for alpha in alphas])

    def sample(self, name: str = "", seed: int | None = None) -> Sample:
        """Draw image and layout."""
        image, masks = self.render()
        return Sample(image, Layout(masks, self.captions, self.caption, seed=seed, name=name, overlap="share"))


def listed(names: Sequence[str]) -> str:
    """Join names by commas, and the last one by "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def held_out(figure: Figure) -> bool:
    """Tell whether a figure's combination of colour, shape and pattern never occurs in training."""
    code = 7 * list(COLOURS).index(figure.colour) + 3 * SHAPES.index(figure.shape) + 5 * PATTERNS.index(figure.pattern)
    return code % 10 == 0


class ShapesDataset:
    """Scenes of one split and kind.

    Samples have visible masks, one caption per figure and a global caption.

    kind      a key of KINDS, or "mixed"
    entities  bounds of the number of figures; None: the kind's
    size      edge of square images in pixels, or (H, W); figures grow with the image, but not their patterns
    sizes     several (H, W) instead, in turn: scene i has sizes[i % len(sizes)]
    """

    def __init__(
        self,
        split: str = "train",
        n_scenes: int = 1000,
        kind: str = "normal",
        entities: tuple[int, int] | None = None,
        seed: int = 0,
        size: int | tuple[int, int] = 256,
        sizes: tuple[tuple[int, int], ...] | None = None,
    ):
        if split not in SPLITS:
            raise UserError(f"shapes: unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if kind not in (*KINDS, "mixed"):
            raise UserError(f"shapes: unknown kind {kind!r}; choose one of {', '.join(KINDS)}, mixed")
        if n_scenes < 1:
            raise UserError(f"shapes: n_scenes is {n_scenes}; give at least 1")
        if seed < 0:
            raise UserError(f"shapes: seed is {seed}; give at least 0")
        if entities is not None and not 1 <= entities[0] <= entities[1]:
            raise UserError(f"shapes: entities is {list(entities)}; give the least and the greatest number, from 1 on")
        self.split, self.n_scenes, self.seed = split, n_scenes, seed
        self.kind, self.entities, self.sizes = kind, entities, tuple(map(_sides, sizes or [size]))

    def __len__(self) -> int:
        return self.n_scenes

    def scene(self, index: int) -> Scene:
        """Return what sample `index` shows, not yet drawn."""
        if not 0 <= index < self.n_scenes:
            raise IndexError(index)
        name = MIXED[index % len(MIXED)] if self.kind == "mixed" else self.kind
        entities = None if self.entities is None else tuple(self.entities)
        return _scene(self.split, name, entities, self.seed, self.sizes[index % len(self.sizes)], index)

    def __getitem__(self, index: int) -> Sample:
        return self.scene(index).sample(name=self.key(index), seed=index)

    def key(self, index: int) -> str:
        return f"{self.split}_{self.kind}_{index:05d}"

    def photo_digest(self, index: int) -> str:
        return ""

    def annotation(self, index: int) -> Annotation:
        scene = self.scene(index)
        return Annotation(self.key(index), MaskStack(scene.masks()), scene.captions, scene.caption)

    def fingerprint(self) -> str:
        """Return a digest of DRAWING and the parameters: a scene depends on nothing else."""
        squares = [height if height == width else (height, width) for height, width in self.sizes]
        size = squares[0] if len(squares) == 1 else squares
        parts = [DRAWING, self.split, self.n_scenes, self.kind, self.entities, self.seed, size]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _sides(size: int | Sequence[int]) -> Size:
    """Return (H, W) of an edge or of two sides. Raises UserError."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 64:
        raise UserError(f"shapes: size is {size}; give at least 64 pixels, or a height and a width of that")
    return sides


@functools.lru_cache(maxsize=KEPT_SCENES)
def _scene(split: str, name: str, entities: tuple[int, int] | None, seed: int, size: Size, index: int) -> Scene:
    kind = KINDS[name] if entities is None else replace(KINDS[name], entities=entities)
    rng = np.random.default_rng((seed, SPLITS.index(split), list(KINDS).index(name), index))
    return _sample_scene(rng, kind, split == "train", size)


def _sample_scene(rng: np.random.Generator, kind: Kind, training: bool, size: Size) -> Scene:
    overlapping = rng.random() < kind.overlapping
    wanted = int(rng.integers(kind.entities[0], kind.entities[1] + 1))
    figures: list[Figure] = []
    masks: list[np.ndarray] = []
    taken = np.zeros(size, bool)
    for attempt in range(60 * wanted):
        if len(figures) == wanted:
            break
        shrink = 1 - 0.5 * attempt / (60 * wanted)
        figure = _sample_figure(rng, kind, wanted, size, shrink)
        if training and held_out(figure):
            continue
        if not overlapping and covers_any(figure, taken):  # as most do: drawing them takes most of the time
            continue
        mask = draw_mask(figure, size)
        if _fits_on_top(figures, masks, figure, mask) if overlapping else not (mask & taken).any():
            figures.append(figure)
            masks.append(mask)
            taken |= _grow(mask)
    return Scene(tuple(figures), _one_of(rng, tuple(BACKGROUNDS)), size)


def _sample_figure(rng: np.random.Generator, kind: Kind, wanted: int, size: Size, shrink: float) -> Figure:
    shape = "badge" if kind.badges_only else _one_of(rng, SHAPES)
    edge = min(math.sqrt(size[0] * size[1]), WIDE * min(size))
    radius = max(14.0, edge * _between(rng, 0.2, 0.36) / math.sqrt(max(wanted, 1.6)) * 1.25 * shrink)
    if shape == "badge":
        details = {"pattern": "plain", "letter": _one_of(rng, LETTERS)}
    else:
        details = {"pattern": _one_of(rng, PATTERNS), "angle": _between(rng, -math.pi, math.pi)}
        details["stretch"] = _between(rng, 0.75, 1.33)
        details["wobble"] = _between(rng, 0.04, 0.08) if rng.random() < kind.jagged else 0.0
        if rng.random() < kind.thin:  # finer than a 16 px token
            details |= (
                {"stroke": _between(rng, 6, 11) / radius} if shape == "ring" else {"stretch": _between(rng, 3, 6)}
            )
    reach = 1.2 * radius * math.sqrt(details.get("stretch", 1.0)) + MARGIN
    reach = min(reach, min(size) / 2 - 1)
    centre = (_between(rng, reach, size[1] - reach), _between(rng, reach, size[0] - reach))
    return Figure(shape, _one_of(rng, tuple(COLOURS)), centre=centre, radius=radius, **details)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw what `rng.uniform` would draw, which converts its arguments to arrays each time."""
    return low + (high - low) * rng.random()


def _one_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Draw what `rng.choice` would draw, which makes an array of the names each time."""
    return names[rng.integers(len(names))]


def _fits_on_top(figures: list[Figure], masks: list[np.ndarray], figure: Figure, mask: np.ndarray) -> bool:
    """Tell whether the figure can partly cover others without hiding any of them."""
    if any(_concentric(figure, other) for other in figures):
        return False
    shown = visible_masks([*masks, mask])
    return all(s.sum() >= MIN_VISIBLE * m.sum() for s, m in zip(shown, [*masks, mask], strict=True))


def _bounds(alpha: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _grow(mask: np.ndarray, pixels: int = 3) -> np.ndarray:
    """Dilate a mask, so that the outlines of neighbours stay apart."""
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def _concentric(a: Figure, b: Figure) -> bool:
    return np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]) < 0.6 * max(a.radius, b.radius)
