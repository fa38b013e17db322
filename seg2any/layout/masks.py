"""Cut numbers to masks: one rule for each kind of array and picture; docs/layouts.md shows them as a table.

booleans                as they are
two values, 0 and v     v is inside
-1 and 1                1 is inside
floats from 0 to 1      probabilities, inside above one half; with a warning if some lie a little outside
other negative floats   logits, inside above 0, where the probability is one half; with a warning
0..255, 0..65535        soft masks, inside above one half; with a warning if much is neither inside nor outside

Everything else is refused: several plateaus of values are labels, and which of them is the region nobody knows.
"""

from __future__ import annotations

import warnings

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutWarning

LABELS = "so they look like labels; save one mask per region, such as `labels == 1`"
OVERSHOOT = 0.25  # of probabilities outside of 0..1, as bicubic and Lanczos filters leave it
NEAR = 8  # of 255: noise of JPEG around a flat value stays within it
LEAST_SHARE = 0.02  # of the pixels that are not 0, for a plateau
MOST_UNDECIDED = 0.75  # pixels neither inside nor outside, per pixel inside, without a warning
EDGE = 1 / 8  # of the way between the plateaus: what is nearer to one of them is decided


def without_channel(masks: np.ndarray) -> np.ndarray:
    """Drop the axis of one channel that segmenters give: [N, 1, H, W] -> [N, H, W]; other shapes stay."""
    return masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks


def cut(where: str, values: np.ndarray, is_lossy: bool = False) -> np.ndarray:
    """Cut numbers [N, H, W] of one kind to masks, bool [N, H, W].

    is_lossy  they come from a JPEG or WebP, whose noise makes plateaus of almost equal values

    Raises LayoutError, starting with `where`, for labels and for numbers without a rule. Warns with LayoutWarning.
    """
    if values.dtype == bool or not values.size:
        return values.astype(bool)
    if np.isnan(values).any():
        raise LayoutError(f"{where}: masks contain NaN, neither inside nor outside a region; save a bool array")
    least, most = values.min(), values.max()
    is_whole = values.dtype.kind in "iu" or bool((values == np.trunc(values)).all())
    if not is_whole and least >= -OVERSHOOT and most <= 1 + OVERSHOOT and (least < 0 or most > 1):
        _warn(f"{where}: values reach from {least:.3g} to {most:.3g} and are read as probabilities that were resized")
        return values > 0.5
    if least < 0:
        return _cut_signed(where, values, is_whole)
    if most <= 1:
        return _cut_probabilities(where, values)
    if not is_whole and most <= 127.5:
        raise LayoutError(
            f"{where}: values reach from {least:.3g} to {most:.3g}, neither probabilities (0 to 1) nor logits "
            "(below and above 0); save a bool array"
        )
    full = 255 if most <= 255 else 65535
    if most > full:
        raise LayoutError(f"{where}: values reach up to {most:.6g}, {LABELS}")
    places = [where] if len(values) == 1 else [f"{where}: masks[{n}]" for n in range(len(values))]
    return np.stack([_cut_levels(place, mask, full, is_lossy) for place, mask in zip(places, values, strict=True)])


def _cut_probabilities(where: str, values: np.ndarray) -> np.ndarray:
    inside = values > 0.5
    for n in np.flatnonzero(values.any((1, 2)) & ~inside.any((1, 2))):
        most = values[n].max()
        raise LayoutError(
            f"{where}: masks[{n}] has no probability above one half, the greatest is {most:.2g}; scale it"
        )
    return inside


def _cut_signed(where: str, values: np.ndarray, is_whole: bool) -> np.ndarray:
    if is_whole and (np.abs(values) == 1).all():
        return values > 0
    if is_whole:
        found = ", ".join(f"{value:g}" for value in np.unique(values)[:5])
        raise LayoutError(f"{where}: values are {found}, {LABELS}")
    _warn(
        f"{where}: values reach from {values.min():.3g} to {values.max():.3g} and are read as logits, inside above 0; "
        "save a bool array to be sure"
    )
    return values > 0


def _cut_levels(where: str, mask: np.ndarray, full: int, is_lossy: bool) -> np.ndarray:
    """Cut values [H, W] from 0 to `full`."""
    if mask.min() == 0 and (mask[mask > 0] == mask.max()).all():
        return mask > 0
    levels = (mask.astype(np.float32) * (255 / full)).round().astype(np.uint8)
    if levels.max() <= 127:
        known = np.unique(mask[mask > 0])
        found = ", ".join(f"{value:g}" for value in known[:5]) + (", ..." if len(known) > 5 else "")
        raise LayoutError(f"{where}: values are {found} of {full}, none above one half, {LABELS}")
    low, high, others = _plateaus(levels, is_lossy)
    if len(others):
        found = ", ".join(str(value) for value in sorted({low, high, *others.tolist()}))
        raise LayoutError(f"{where}: areas have the values {found} of 255, {LABELS}")
    inside = levels > 127
    margin = (high - low) * EDGE
    undecided = int(((levels > low + margin) & (levels < high - margin)).sum())
    if undecided > MOST_UNDECIDED * inside.sum():
        _warn(
            f"{where}: {undecided} pixels are neither clearly inside nor outside; they are cut at one half, so check "
            "that this is a mask and not a photo"
        )
    return inside


def _plateaus(levels: np.ndarray, is_lossy: bool) -> tuple[int, int, np.ndarray]:
    """Find the flat values of uint8 [H, W]: that of the outside, that of the inside, and others.

    A value is flat if a pixel and its eight neighbours have it and it holds LEAST_SHARE of the pixels that are not 0.
    Values of soft edges and noise are not: their neighbours within NEAR hold at least a third as many pixels.
    """
    import cv2  # here, because all who read images would load it

    counts = np.bincount(levels.ravel(), minlength=256)
    square = np.ones((3, 3), np.uint8)
    painted = np.bincount(levels[cv2.erode(levels, square) == cv2.dilate(levels, square)], minlength=256) > 0
    flat = np.flatnonzero(painted & (counts >= LEAST_SHARE * (levels > 0).sum()))
    below, above = flat[flat <= 127], flat[flat > 127]
    low = int(below[counts[below].argmax()]) if len(below) else int(levels.min())
    high = int(above[counts[above].argmax()]) if len(above) else int(levels.max())
    counts[[low, high]] = 0
    others = [
        value for value in flat if counts[value] and abs(high - value) > NEAR and (value - low > NEAR or not is_lossy)
    ]
    alone = [value for value in others if counts[value] >= 0.75 * counts[max(0, value - NEAR) : value + NEAR + 1].sum()]
    return low, high, np.array(alone, dtype=int)


def _warn(text: str) -> None:
    warnings.warn(text, LayoutWarning, stacklevel=4)
