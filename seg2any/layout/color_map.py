"""Read and write colour maps, the published pictures: one flat colour for each region.

Soft edges and JPEG noise, whose colours the JSON does not list, are recognised and can be merged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from seg2any.layout.checks import LayoutError, LayoutWarning, check_colors, check_mask_shape
from seg2any.layout.entries import Color, Region
from seg2any.layout.images import SAME_COLOR, read_colors
from seg2any.layout.overlap import shared_pixels
from seg2any.system.files import atomic_write

SUFFIXES = (".png", ".bmp", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")
INVISIBLE = 1 << 24  # sorts after all 24-bit colours
NEAR = float(SAME_COLOR)  # RGB distance of a stray from its colour at most, see also `_reach`
NOISE = 8.0  # RGB distance between a flat colour and the same colour after JPEG
CLEAN = 0.001  # of the pixels have colours that fill no area, at most, in a picture without noise
LEAST_AREA = 0.005  # of the pixels, for a colour of its own near to a listed one


@dataclass(frozen=True)
class _Palette:
    """The K different colours of an image.

    rgb:    int64 [K, 3]
    pixels: int64 [K], number of pixels of each colour
    index:  int [H, W], colour of each pixel, -1 = invisible
    """

    rgb: np.ndarray
    pixels: np.ndarray
    index: np.ndarray


def read_color_map(path: Path, regions: Sequence[Region], snap_colors: bool) -> np.ndarray:
    """Find the pixels of each region's colour: masks bool [N, H, W].

    Transparent pixels, and black ones unless a region lists black, are background. Other unlisted colours become
    background with a LayoutWarning. An unlisted colour that fills no area, or is near to a colour that fills one, is a
    stray: a soft edge or JPEG noise. `snap_colors` gives every stray to the nearest colour of a region or background.

    Raises LayoutError for a listed colour that no pixel has.
    """
    palette = _palette_of(path)
    check_mask_shape(str(path), (len(regions), *palette.index.shape))
    listed = np.array([region.color for region in regions], dtype=np.int64)
    owner = _owners(palette, listed)
    strays, background, anchors = _split_unlisted(palette, owner, listed)
    if snap_colors:
        nearest, _ = _nearest(palette.rgb[strays], anchors)
        owner[strays] = np.where(nearest < len(listed), nearest, -1)
    elif len(strays):
        _warn_strays(path, palette, strays, anchors)
    _warn_background(path, palette, background)
    for n, region in enumerate(regions):
        if not (owner == n).any():
            raise LayoutError(_missing_color(path, region, palette))
    lookup = np.append(owner, -1)  # index -1, invisible, reads the last entry
    return np.stack([lookup[palette.index] == n for n in range(len(regions))])


def region_colors(count: int) -> list[Color]:
    """Choose `count` distinct colours, none black, with neighbours in the list far apart.

    Any two differ by at least 255 // (levels - 1) in one channel, where levels**3 > count: by 85 up to 63 regions, by
    36 up to 511. Raises LayoutError for more regions than there are 8-bit colours.
    """
    bits = next((bits for bits in range(2, 9) if count < 8**bits), None)
    if bits is None:
        raise LayoutError(f"{count} regions need more colours than 8 bits have; write .npz")
    levels = 2**bits
    codes = [(n + 1) * 23 % levels**3 for n in range(count)]  # 23 is odd, so all differ and none is 0
    shades = [round(255 * level / (levels - 1)) for level in range(levels)]
    return [(shades[code % levels], shades[code // levels % levels], shades[code // levels**2]) for code in codes]


def write_color_map(masks: np.ndarray, colors: Sequence[Color], path: Path) -> None:
    """Write an RGB PNG. Raises LayoutError for overlapping and empty masks, which would be lost."""
    shared = shared_pixels(masks)
    if shared.any():
        raise LayoutError(
            f"{path}: regions overlap in {int(shared.sum())} pixels, which a colour map cannot hold; "
            "write .npz, or write layout.flattened()"
        )
    pixels = np.zeros((*masks.shape[1:], 3), dtype=np.uint8)
    for n, (mask, color) in enumerate(zip(masks, colors, strict=True)):
        if not mask.any():
            raise LayoutError(
                f"{path}: region {n + 1} has no pixel, which a colour map cannot hold; write .npz, or remove the region"
            )
        pixels[mask] = color
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _palette_of(path: Path) -> _Palette:
    colors, visible = read_colors(path)
    red, green, blue = colors.astype(np.int32).reshape(-1, 3).T
    packed = np.where(visible.reshape(-1), red << 16 | green << 8 | blue, INVISIBLE)
    # Sorting takes most of the time, and a colour map has far fewer runs of equal pixels than pixels.
    starts = np.append(0, np.flatnonzero(packed[1:] != packed[:-1]) + 1)
    lengths = np.diff(starts, append=len(packed))
    values, index_of_run = np.unique(packed[starts], return_inverse=True)
    check_colors(str(path), len(values))
    pixels = np.bincount(index_of_run, weights=lengths).astype(np.int64)
    index = np.repeat(index_of_run, lengths).reshape(visible.shape)
    if values[-1] == INVISIBLE:
        values, pixels = values[:-1], pixels[:-1]
        index[index == len(values)] = -1
    rgb = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int64)
    return _Palette(rgb, pixels, index)


def _owners(palette: _Palette, listed: np.ndarray) -> np.ndarray:
    """Return int [K], the region that lists exactly this colour, or -1."""
    owner = np.full(len(palette.rgb), -1)
    for n, color in enumerate(listed):
        owner[(palette.rgb == color).all(axis=1)] = n
    return owner


def _split_unlisted(
    palette: _Palette, owner: np.ndarray, listed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split unlisted colours into strays and background; list what strays may belong to.

    Returns
        strays      int, indices of stray colours
        background  int, indices of colours other than black that fill areas of background, the commonest first
        anchors     int [A, 3], the listed colours, then black if it fills an area, then those of the background

    A colour fills an area if somewhere a pixel and its eight neighbours have it, which hardly happens in a soft edge.
    """
    is_black, near = (palette.rgb == 0).all(axis=1), _reach(palette, listed)
    filled = _painted(palette)
    painted = filled & (owner < 0)
    black = np.zeros((int(_has_black(palette, owner, listed, is_black | ~painted)), 3), dtype=np.int64)
    far = _nearest(palette.rgb, np.concatenate([listed, black]))[1] > near
    left = painted & ~is_black & (far | _is_own_color(palette, owner, filled, listed))
    background = []
    while left.any():
        commonest = np.where(left, palette.pixels, 0).argmax()
        background.append(commonest)
        left &= _nearest(palette.rgb, palette.rgb[[commonest]])[1] > near
    is_stray = (owner < 0) & ~is_black
    is_stray[background] = False
    background = np.array(background, dtype=np.int64)
    return np.flatnonzero(is_stray), background, np.concatenate([listed, black, palette.rgb[background]])


def _reach(palette: _Palette, listed: np.ndarray) -> float:
    """Return the greatest distance of a stray: NEAR, or less where colours are close, as in pictures of labels.

    It is less than half of the least distance between two listed colours, or one and black if there is black.
    """
    black = np.zeros((int((palette.rgb == 0).all(axis=1).any()), 3), dtype=np.int64)
    colors = np.unique(np.concatenate([listed, black]), axis=0)
    distances = np.sqrt(((colors[:, None] - colors[None]) ** 2).sum(axis=2))
    return min(NEAR, 0.49 * distances[distances > 0].min(initial=np.inf))


def _is_own_color(palette: _Palette, owner: np.ndarray, filled: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Find unlisted colours, bool [K], near to a listed one but painted on purpose beside it.

    Such a colour and the listed one both fill areas, and hardly any other unlisted colour is near, as noise would be.

    filled  bool [K], colours that fill a 3x3 square
    """
    noise = NOISE if palette.pixels[~filled].sum() > CLEAN * palette.index.size else 0.0
    own = filled & (owner < 0) & (palette.pixels >= LEAST_AREA * palette.index.size)
    nearest, distance = _nearest(palette.rgb, listed)
    for k in np.flatnonzero(own):
        around = (owner < 0) & (_nearest(palette.rgb, palette.rgb[[k]])[1] <= NEAR) & (palette.rgb > 0).any(axis=1)
        is_alone = palette.pixels[k] >= 0.75 * palette.pixels[around].sum()
        own[k] = distance[k] > noise and filled[owner == nearest[k]].any() and is_alone
    return own


def _painted(palette: _Palette) -> np.ndarray:
    """Find the colours, bool [K], that fill a 3x3 square, which the border may cut off."""
    index, square = palette.index.astype(np.float32), np.ones((3, 3), dtype=np.uint8)
    uniform = (cv2.erode(index, square) == cv2.dilate(index, square)) & (palette.index >= 0)
    return np.bincount(palette.index[uniform], minlength=len(palette.rgb)) > 0


def _has_black(palette: _Palette, owner: np.ndarray, listed: np.ndarray, may_be: np.ndarray) -> bool:
    """Return True if black, with JPEG noise on it, fills a 3x3 square.

    In narrow black areas of a JPEG no nine pixels are equal, so that `_painted` misses them.

    may_be: bool [K], colours that count as black if they are near to it, and nearer than to any listed colour
    """
    distance = _nearest(palette.rgb, np.zeros((1, 3), dtype=np.int64))[1]
    dark = may_be & (owner < 0) & (distance <= NEAR) & (distance < _nearest(palette.rgb, listed)[1])
    dark_pixels = np.append(dark, False)[palette.index]  # index -1, invisible, reads the last entry
    return bool(cv2.erode(dark_pixels.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)).any())


def _nearest(rgb: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest anchor of each colour: index int [K], Euclidean distance float [K]."""
    best, squared = np.zeros(len(rgb), dtype=np.int64), np.full(len(rgb), np.inf)
    for n, anchor in enumerate(anchors):
        candidate = ((rgb - anchor) ** 2).sum(axis=1)
        closer = candidate < squared
        best[closer], squared[closer] = n, candidate[closer]
    return best, np.sqrt(squared)


def _warn_strays(path: Path, palette: _Palette, strays: np.ndarray, anchors: np.ndarray) -> None:
    top = strays[palette.pixels[strays].argmax()]
    nearest = anchors[_nearest(palette.rgb[[top]], anchors)[0][0]]
    pixels = int(palette.pixels[strays].sum())
    warnings.warn(
        f"{path}: {pixels} pixels in {len(strays)} colours that are not in the JSON look like soft edges or JPEG noise "
        f"(such as {palette.rgb[top].tolist()} near {nearest.tolist()}) and count as background; use --snap_colors to "
        "merge them",
        LayoutWarning,
        stacklevel=2,
    )


def _warn_background(path: Path, palette: _Palette, background: np.ndarray) -> None:
    if len(shown := sorted(background, key=lambda k: -palette.pixels[k])):
        names = ", ".join(f"{palette.rgb[k].tolist()} ({palette.pixels[k]} pixels)" for k in shown[:5])
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        warnings.warn(
            f"{path}: colour {names}{more} is not in the JSON and counts as background; add it to segments_info with a "
            "caption, or paint it black",
            LayoutWarning,
            stacklevel=2,
        )


def _missing_color(path: Path, region: Region, palette: _Palette) -> str:
    message = f"{region.where}: color {list(region.color)} is not in {path.name}"
    if len(palette.rgb) == 0:
        return f"{message}, which is entirely transparent; paint the regions opaque"
    best, distance = _nearest(np.array([region.color]), palette.rgb)
    nearest, pixels = palette.rgb[best[0]].tolist(), palette.pixels[best[0]]
    if distance[0] <= NEAR:
        return f"{message}; the nearest is {nearest} ({pixels} pixels): correct the colour or use --snap_colors"
    return f"{message}; correct the colour (the nearest there is {nearest}, {pixels} pixels) or remove the region"
