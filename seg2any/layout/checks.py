"""Check the parts of layouts: what all readers share with `Layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seg2any.layout.overlap import OVERLAPS
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits

MAX_SEED = 2**63 - 1


class LayoutParts(NamedTuple):
    """The fields of a `Layout` as read from files, before it checks that they fit together."""

    masks: np.ndarray
    captions: tuple[str, ...]
    caption: str | None = None
    seed: int | None = None
    name: str = ""
    scores: np.ndarray | None = None
    source: str = ""
    overlap: str = "hide"
    colors: tuple[tuple[int, int, int], ...] | None = None
    notes: tuple[str, ...] = ()


class LayoutError(UserError):
    """A layout that cannot be used; the message is one line, even if a file name has several."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class LayoutWarning(UserWarning):
    """A layout that can be used, but perhaps not as its author meant it."""


def check_overlap(where: str, overlap: object) -> None:
    """Raise LayoutError unless `overlap` is one of `seg2any.layout.overlap.OVERLAPS`."""
    if overlap not in OVERLAPS:
        raise LayoutError(f"{where}: overlap is {shown(overlap)}; use one of {', '.join(OVERLAPS)}")


def check_masks(where: str, masks: np.ndarray) -> None:
    """Raise LayoutError unless `masks` is bool [N, H >= 1, W >= 1]."""
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_ or masks.ndim != 3 or 0 in masks.shape[1:]:
        found = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, np.ndarray) else type(masks).__name__
        raise LayoutError(f"{where}: masks are {found}; give a bool array [N, H, W]")
    check_mask_shape(where, masks.shape)


def check_mask_shape(where: str, shape: Sequence[int]) -> None:
    """Raise LayoutError if masks [N, H, W] are too many or too large; call this before allocating them."""
    count, height, width = shape
    most = limits()
    if height * width > most.pixels:
        raise LayoutError(f"{where}: {width}x{height} is more than {most.pixels >> 20} megapixels; scale it down")
    if count > most.regions:
        raise LayoutError(f"{where}: has {count} regions, more than {most.regions}; merge or remove some")
    if count * height * width > most.mask_bytes:
        size = f"{count} masks of {width}x{height} need more than {most.mask_bytes >> 20} MiB"
        raise LayoutError(f"{where}: {size}; scale the masks down")


def check_pictures(where: str, count: int, shape: Sequence[int]) -> None:
    """Raise LayoutError if decoding so many pictures of masks [H, W] would take too long."""
    height, width = shape
    if count * height * width > (most := limits().mask_pixels):
        told = f"{count} pictures of masks of {width}x{height} are more than {most >> 20} megapixels together"
        raise LayoutError(f"{where}: {told}; give one colour map, or scale them down")


def check_colors(where: str, count: int) -> None:
    """Raise LayoutError for a picture of regions with so many colours that it is a photo."""
    if count > (most := limits().colors):
        raise LayoutError(f"{where}: has {count} colours, more than {most}, as a photo; paint regions in flat colours")


def check_snapping(where: str, colors: int, shape: Sequence[int]) -> None:
    """Raise LayoutError if comparing every pixel [H, W] of a picture with `colors` colours would take too long."""
    height, width = shape
    if colors * height * width > limits().snapped:
        told = f"giving soft edges of {width}x{height} pixels to the nearest of {colors} colours takes too long"
        raise LayoutError(f"{where}: {told}; paint hard edges, or scale it down")


def check_caption(where: str, text: object) -> None:
    """Raise LayoutError unless `text` is a string that is not blank, not too long and that UTF-8 can encode."""
    if not isinstance(text, str):
        raise LayoutError(f"{where} is {shown(text)}; write a string")
    if len(text) > (most := limits().characters):
        raise LayoutError(f"{where} has {len(text)} characters, more than {most}; shorten it")
    if not text.strip():
        raise LayoutError(f"{where} is empty; describe what is there")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LayoutError(f"{where} {shown(text)} has half a surrogate pair; write the character itself") from None


def check_seed(where: str, seed: object) -> None:
    """Raise LayoutError unless `seed` is an int from 0 to 2**63 - 1, as torch.Generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise LayoutError(f"{where} is {shown(seed)}; write a whole number from 0 to 2**63 - 1, or leave it out")


def check_scores(where: str, scores: object, count: int) -> None:
    """Raise LayoutError unless `scores` is a float array [count] in [0, 1], without NaN."""
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.shape != (count,):
        found = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise LayoutError(f"{where}: scores are {found}; give a float array [{count}], one per mask")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise LayoutError(f"{where}: scores lie outside 0..1; scale them")


def check_drawn_colors(where: str, colors: object, count: int) -> None:
    """Raise LayoutError unless `colors` are `count` triples of whole numbers from 0 to 255."""
    fit = isinstance(colors, tuple) and len(colors) == count
    if not fit or any(len(color) != 3 or not all(0 <= part <= 255 for part in color) for color in colors):
        raise LayoutError(f"{where}: colors are {shown(colors)}; give a tuple of {count}, each (red, green, blue)")


def check_source(where: str, source: object) -> None:
    """Raise LayoutError unless `source` is \"\" or a caption as `check_caption` wants it."""
    if source != "":
        check_caption(f"{where}: source", source)
