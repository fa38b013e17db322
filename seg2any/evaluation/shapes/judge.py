"""A judge for the `shapes` world that sees pixels only.

It judges colour, pattern, shape and leaks of every entity on its own. How far its verdicts can be trusted is measured
in tests/test_shapes_judge.py: rendered truth is the ceiling; blurred, shifted, recoloured, shuffled, incomplete and
empty images have known verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, INK
from seg2any.evaluation.metrics.overlap import boundary_iou, shift_border
from seg2any.evaluation.shapes.drawn import (
    DISTINCT,
    INK_SHARE,
    Attributes,
    background_tone,
    core_of,
    distance,
    drawn_shapes,
    ink_share,
    seen_tone,
    to_lab,
)
from seg2any.evaluation.shapes.pattern import detect_letter, detect_pattern
from seg2any.layout import Layout
from seg2any.layout.overlap import iou
from seg2any.system.errors import UserError

BOUNDARY = 2  # pixels
COLOUR_TOLERANCE = 25.0  # CIELAB; a colour farther than this from every tone has no name
_TONES = {**COLOURS, **{f"{name} background": tone for name, tone in BACKGROUNDS.items()}, "ink": INK}
_NAMES, _LABS = list(_TONES), to_lab(np.float32(list(_TONES.values())))


@dataclass(frozen=True)
class Region:
    """The verdict on one entity.

    colour, pattern   seen: a name, "none" for a colour outside the palette, "missing" or "unclear"
    colour_right      whether most pixels of the eroded region show the caption's colour
    pattern_right     whether pattern or letter is the caption's
    letter_right      the same for a badge; None for other figures
    iou               IoU of the drawn shape with the visible mask, 0..1
    boundary_iou      IoU of bands of BOUNDARY pixels inside the outlines of both, 0..1
    leak              share of the eroded region that shows the colour of another entity of the scene, 0..1
    coloured          share of it that shows the colour of any entity of the scene, its own included, 0..1
    """

    caption: str
    colour: str
    colour_right: bool
    pattern: str
    pattern_right: bool
    letter_right: bool | None
    iou: float
    boundary_iou: float
    leak: float
    coloured: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on one image.

    regions           verdicts on its entities, in the layout's order
    background_right  whether the seen background is the one that the global caption names; None if it names none
    clutter           share of the pixels away from every mask that do not look like the background, 0..1
    """

    regions: tuple[Region, ...]
    background_right: bool | None
    clutter: float


def judge(image: np.ndarray, layout: Layout) -> Verdict:
    """Judge a `shapes` image uint8 [H, W, 3] against the layout that it should obey.

    Raises UserError if the sizes differ, a mask is empty or a caption is not one of this world.
    """
    if image.dtype != np.uint8 or image.shape != (*layout.size, 3):
        raise UserError(f"shapes judge: the image is {image.dtype} {image.shape}; give uint8 {(*layout.size, 3)}")
    masks = visible(layout.masks)
    if not masks.any((1, 2)).all():
        raise UserError(f"shapes judge: {layout.name or 'layout'}: a mask is empty or hidden; leave that entity out")
    attributes = [Attributes.of(caption) for caption in layout.captions]
    drawn = drawn_shapes(image, masks, attributes)
    regions = tuple(
        Region(
            caption, *_colour(image, mask, wanted), *_pattern(image, mask, shape, wanted), *_overlap(shape, mask), *leak
        )
        for caption, mask, shape, wanted, leak in zip(
            layout.captions, masks, drawn, attributes, _leaks(image, masks, attributes), strict=True
        )
    )
    return Verdict(regions, *_background(image, masks, layout.caption))


def visible(masks: np.ndarray) -> np.ndarray:
    """Remove from masks bool [N, H, W], given in z order, what later masks hide."""
    above = np.cumsum(masks[::-1], 0, dtype=np.uint8)[::-1] - masks
    return masks & (above == 0)


def _overlap(drawn: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    return iou(drawn, mask), boundary_iou(drawn, mask, BOUNDARY)


def _named(colours: np.ndarray) -> np.ndarray:
    """Find the tone nearest to colours [P, 3]: index into _NAMES [P], -1 if none is near."""
    distances = distance(to_lab(colours)[:, None], _LABS)
    return np.where(distances.min(1) <= COLOUR_TOLERANCE, distances.argmin(1), -1)


def _colour(image: np.ndarray, mask: np.ndarray, wanted: Attributes) -> tuple[str, bool]:
    """Return the colour of most pixels of the eroded region, ink aside, and whether it is right."""
    colours = image[core_of(mask)]
    names = _named(colours)
    coloured = names != _NAMES.index("ink")
    if not coloured.any():
        return "ink", False
    if coloured.mean() < 1 - INK_SHARE:
        # Blends with ink have other names than the colour itself; they are rare in the lighter half.
        light = to_lab(colours)[:, 0]
        coloured &= light >= np.median(light[coloured])
    votes = np.bincount(names[coloured] + 1, minlength=len(_NAMES) + 1)
    seen = ["none", *_NAMES][int(votes.argmax())]
    return seen, seen == wanted.colour


def _pattern(
    image: np.ndarray, mask: np.ndarray, drawn: np.ndarray, wanted: Attributes
) -> tuple[str, bool, bool | None]:
    """Return pattern or letter, whether it is right, and the latter again for a badge, else None."""
    seen = _filling(image, mask, drawn, wanted)
    right = seen == wanted.pattern
    return seen, right, right if wanted.is_badge else None


def _filling(image: np.ndarray, mask: np.ndarray, drawn: np.ndarray, wanted: Attributes) -> str:
    core = core_of(mask)
    if (drawn & core).sum() < 0.5 * core.sum():
        return "missing"
    tone = seen_tone(image[core])
    tone = np.float32(COLOURS[wanted.colour]) if tone is None else tone
    inside = core & drawn
    return detect_letter(image, inside, tone, mask) if wanted.is_badge else detect_pattern(image, inside, tone)


def _leaks(image: np.ndarray, masks: np.ndarray, attributes: list[Attributes]) -> list[tuple[float, float]]:
    """Measure a pair per entity: shares of its eroded region in another's colour, and in any's."""
    palette = {wanted.colour: to_lab(COLOURS[wanted.colour]) for wanted in attributes}
    leaks = []
    for mask, wanted in zip(masks, attributes, strict=True):
        colours = image[core_of(mask)]
        others = [tone for colour, tone in palette.items() if colour != wanted.colour]
        own = np.float32(COLOURS[wanted.colour])
        # A blend of the own colour and ink can look like another colour: dark orange is brown.
        blend = own + ink_share(np.float32(colours), own)[:, None] * (np.float32(INK) - own)
        pixels = to_lab(colours)
        to_own = distance(pixels, to_lab(blend))
        theirs = np.min([np.full(len(pixels), np.inf), *(distance(pixels, tone) for tone in others)], 0)
        leaked = (theirs < DISTINCT) & (theirs < to_own)
        leaks.append((float(leaked.mean()), float((leaked | (to_own < DISTINCT)).mean())))
    return leaks


def _background(image: np.ndarray, masks: np.ndarray, caption: str | None) -> tuple[bool | None, float]:
    tone = background_tone(image, masks)
    if tone is None:
        return None, 0.0
    words = (caption or "").split()
    named = words[-2] if len(words) > 1 and words[-2] in BACKGROUNDS else None
    tones = to_lab(np.float32(list(BACKGROUNDS.values())))
    nearest = list(BACKGROUNDS)[int(distance(tones, to_lab(tone)).argmin())]
    away = ~shift_border(masks.any(0), 3)
    clutter = (distance(to_lab(image[away]), to_lab(tone)) > DISTINCT).mean() if away.any() else 0.0
    return (None if named is None else nearest == named), float(clutter)
