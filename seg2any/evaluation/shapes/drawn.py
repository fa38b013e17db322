"""The pixels of a `shapes` image that look like each entity, found without a network.

Every pixel is compared, in CIELAB, with the tones of the background and of each entity near it. The tones of an entity
are its caption's colour, the colour seen inside its mask (a wrong colour in the right place still has a shape), and the
dark ink of patterns. Masks decide only between tones that look alike; they never turn background into a shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from seg2any.data.shapes_draw import COLOURS, INK, LETTERS, PATTERNS
from seg2any.evaluation.metrics.overlap import shift_border
from seg2any.system.errors import UserError

REACH = 32  # pixels beyond its mask in which an entity's drawn shape is looked for
DISTINCT = 15.0  # CIELAB distance below which two tones count as equal
MIX_PENALTY = 6.0  # CIELAB; a blend of colour and ink explains only pixels that no pure tone explains
DISTANCE_PENALTY = 1.5  # CIELAB per pixel from the mask, up to DISTINCT: like tones go to the nearest entity
INK_SHARE = 0.05  # share of the core; more ink is a pattern, whatever the caption says


@dataclass(frozen=True)
class Attributes:
    """Colour and pattern that a caption of the `shapes` world promises.

    `pattern` is one of PATTERNS, or "letter X" for a badge.
    """

    colour: str
    pattern: str

    @classmethod
    def of(cls, caption: str) -> Attributes:
        """Read the attributes of a caption. Raises UserError for a caption of another world."""
        words = caption.split()
        colour = next((word for word in words if word in COLOURS), None)
        if colour is None:
            raise UserError(f"shapes judge: caption {caption!r} names none of the colours {', '.join(COLOURS)}")
        if "badge" in words:
            if words[-1] not in LETTERS:
                raise UserError(f"shapes judge: caption {caption!r} has to end in one of the letters {LETTERS}")
            return cls(colour, f"letter {words[-1]}")
        return cls(colour, next((word for word in words if word in PATTERNS), "plain"))

    @property
    def is_badge(self) -> bool:
        """Return whether the entity shows a letter instead of a pattern."""
        return self.pattern.startswith("letter")


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values 0..255 [..., 3] to CIELAB float32 [..., 3]."""
    values = np.float32(rgb).reshape(-1, 1, 3) / 255
    return cv2.cvtColor(values, cv2.COLOR_RGB2LAB).reshape(np.shape(rgb))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the CIE76 colour difference over the last axis."""
    return np.linalg.norm(a - b, axis=-1)


def core_of(mask: np.ndarray) -> np.ndarray:
    """Shrink the mask by its blended border: 2 pixels, or less for a thin figure."""
    return next((core for pixels in (-2, -1) if (core := shift_border(mask, pixels)).sum() >= 20), mask)


def background_tone(image: np.ndarray, masks: np.ndarray) -> np.ndarray | None:
    """Return the median colour [3] away from every mask; None if the masks cover the image."""
    covered = masks.any(0)
    for pixels in (6, 2, 0):
        free = ~shift_border(covered, pixels)
        if free.sum() >= 64:
            return np.median(image[free], 0)
    return None


def ink_share(colours: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Compute how far colours [..., 3] lie on the way from `tone` to INK, in [0, 1]."""
    way = np.float32(INK) - tone
    return np.clip((colours - tone) @ way / max(float(way @ way), 1.0), 0, 1)


def seen_tone(colours: np.ndarray) -> np.ndarray | None:
    """Return the median [3] of the colours [P, 3] that are not ink; None if all are ink."""
    bright = colours[distance(to_lab(colours), to_lab(INK)) > DISTINCT]
    return np.median(bright, 0) if len(bright) else None


def _palette(tones: list[np.ndarray], has_ink: bool) -> list[tuple[np.ndarray, float]]:
    """List the CIELAB points [3] that explain a figure's pixels, each with its penalty."""
    points = [(to_lab(tone), 0.0) for tone in tones]
    if has_ink:
        points.append((to_lab(INK), 0.0))
        mixes = [tone + share * (np.float32(INK) - tone) for tone in tones for share in (0.25, 0.5, 0.75)]
        points += [(to_lab(mix), MIX_PENALTY) for mix in mixes]
    return points


def _other_tone(image: np.ndarray, masks: np.ndarray, entity: int, attributes: list[Attributes]) -> np.ndarray | None:
    """Return the colour [3] in the entity's place, if it is unexpected.

    None for its caption's colour, inked or not, and for a neighbour's.
    """
    mask, attribute = masks[entity], attributes[entity]
    seen = seen_tone(image[core_of(mask)])
    if seen is None:
        return None
    # A neighbour's colour that reaches into this mask is the neighbour, not this entity in another colour.
    around = shift_border(mask, 2)
    neighbours = [theirs.colour for other, theirs in zip(masks, attributes, strict=True) if (other & around).any()]
    known = [tone for tone, _ in _palette([np.float32(COLOURS[attribute.colour])], has_ink=True)]
    known += [to_lab(COLOURS[colour]) for colour in neighbours]
    return seen if min(distance(to_lab(seen), tone) for tone in known) > DISTINCT else None


def drawn_shapes(image: np.ndarray, masks: np.ndarray, attributes: list[Attributes]) -> np.ndarray:
    """Find the pixels that show each entity, bool [N, H, W], disjoint.

    image uint8 [H, W, 3], masks bool [N, H, W] of the visible pixels. A pixel shows an entity if it looks more like it
    than like the background and like every other entity. Tones that equal the background's show nothing.
    """
    pixels = to_lab(image)
    background = background_tone(image, masks)
    background = None if background is None else to_lab(background)
    nearest = np.full(image.shape[:2], np.inf, np.float32) if background is None else distance(pixels, background)
    owner = np.full(image.shape[:2], -1)
    for entity, mask in enumerate(masks):
        tones = [np.float32(COLOURS[attributes[entity].colour])]
        other = _other_tone(image, masks, entity, attributes)
        tones += [] if other is None else [other]
        inside = image[core_of(mask)]
        inked = (distance(to_lab(inside), to_lab(INK)) < DISTINCT).mean() > INK_SHARE
        palette = _palette(tones, inked or attributes[entity].pattern != "plain")
        if background is not None:
            palette = [(tone, penalty) for tone, penalty in palette if distance(tone, background) > DISTINCT]
        if not palette:
            continue
        away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
        window = away <= REACH
        cost = np.min([distance(pixels[window], tone) + penalty for tone, penalty in palette], 0)
        cost = cost + np.minimum(DISTANCE_PENALTY * away[window], DISTINCT)
        wins = cost < nearest[window]
        nearest[window] = np.where(wins, cost, nearest[window])
        owner[window] = np.where(wins, entity, owner[window])
    return np.stack([_without_rims(owner == entity, mask) for entity, mask in enumerate(masks)])


def _without_rims(drawn: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Drop lines of 1 or 2 pixels outside the mask, which are blended borders of other things."""
    return (drawn & mask) | (cv2.morphologyEx(drawn.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0)
