"""The rules of SACap-1M (paper section 3.4): which photos and which masks are kept.

    size, aspect --> near duplicates --> aesthetics --> masks --> top level --> area --> number of masks

Sizes and aspect ratios are not published; those here are our choice. The least area is a reading of the paper, whose
number is garbled in the text at hand, and no published code confirms it. So is the share from which a mask is nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seg2any.annotate.draft import Draft, Dropped
from seg2any.annotate.nested import area, top_level
from seg2any.annotate.similar import perceptual_hash
from seg2any.data.dataset import SampleError
from seg2any.data.pictures import check_photo
from seg2any.layout.images import ImageError, opened_image, upright

UNCONFIRMED = ("min_area", "nested")  # numbers that no published code confirms
UNPUBLISHED = ("min_side", "max_side", "max_aspect", "hash_distance")


@dataclass(frozen=True)
class Rules:
    """The numbers of all rules.

    min_side       pixels of the shorter edge at least
    max_side       pixels of the longer edge at most
    max_aspect     longer edge by shorter edge, at most
    hash_distance  bits in which near duplicates may differ, 0..63; -1: no photo is compared with others
    min_aesthetic  score of the predictor at least; it counts only where a predictor is given
    nested         share of a mask inside a larger one from which it is left out; above 1: none is
    min_area       least share of the photo that a mask covers
    min_masks      least and `max_masks` greatest number of masks that are left
    """

    min_side: int = 512
    max_side: int = 8192
    max_aspect: float = 3.0
    hash_distance: int = 4
    min_aesthetic: float = 5.0
    nested: float = 0.9
    min_area: float = 0.01
    min_masks: int = 1
    max_masks: int = 20


@dataclass(frozen=True)
class Look:
    """A first look at a photo: its size (H, W) as people see it, its perceptual hash, and the bytes of its file."""

    size: tuple[int, int]
    hash: int
    bytes: int


def look_at(path: Path) -> Look:
    """Check that a photo is whole, and look at a small version of it. Raises SampleError."""
    size = check_photo(path)
    try:
        with opened_image(path) as image:
            image.draft("RGB", (256, 256))  # a JPEG is decoded at the nearest size above
            return Look(size, perceptual_hash(upright(image)), path.stat().st_size)
    except ImageError as error:
        raise SampleError(f"{path}: {error}") from None


def check_size(look: Look, rules: Rules) -> None:
    """Raise Dropped for a photo that is too small, too large or too long."""
    height, width = look.size
    short, long = sorted(look.size)
    if short < rules.min_side:
        raise Dropped("min_side", f"{width}x{height}")
    if long > rules.max_side:
        raise Dropped("max_side", f"{width}x{height}")
    if long > rules.max_aspect * short:
        raise Dropped("max_aspect", f"{width}x{height} is {long / short:.3f} : 1")


def keep_top_level(draft: Draft, rules: Rules) -> None:
    """Remove masks that lie inside larger ones."""
    if rules.nested <= 1:
        draft.regions = [draft.regions[number] for number in top_level(draft.runs(), rules.nested, draft.size[0])]


def keep_large(draft: Draft, rules: Rules) -> None:
    """Remove masks that cover too little of the photo, and those without a pixel."""
    least = max(1.0, rules.min_area * draft.size[0] * draft.size[1])
    areas = [area(runs) for runs in draft.runs()]
    draft.regions = [region for region, own in zip(draft.regions, areas, strict=True) if own >= least]


def check_number(draft: Draft, rules: Rules) -> None:
    """Raise Dropped for a photo with too few or too many masks."""
    count = len(draft.regions)
    if count < rules.min_masks:
        raise Dropped("min_masks", f"{count} masks are left")
    if count > rules.max_masks:
        raise Dropped("max_masks", f"{count} masks are left")
