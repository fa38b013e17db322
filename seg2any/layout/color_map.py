"""Read and write colour maps, the published pictures: one flat colour for each region.

Soft edges and JPEG noise, whose colours the JSON does not list, are recognised and given to the nearest region.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from seg2any.layout.checks import LayoutError, LayoutWarning, check_mask_shape, check_snapping
from seg2any.layout.entries import Color, Region
from seg2any.layout.overlap import shared_pixels
from seg2any.layout.palette import NEAR, Palette, nearest, read_palette
from seg2any.layout.strays import Split, is_drawing, paper_of, snapped, split_unlisted
from seg2any.system.files import atomic_write

SUFFIXES = (".png", ".bmp", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")


class ColorMap(NamedTuple):
    """The masks of a picture, bool [N, H, W], and what its author may want to know of them, in lines."""

    masks: np.ndarray
    notes: tuple[str, ...]


def read_color_map(path: Path, regions: Sequence[Region], snap_colors: bool | None) -> ColorMap:
    """Find the pixels of each region's colour.

    Transparent pixels, and black ones unless a region lists black, are background. So is the paper, an unlisted colour
    that fills most of the border, with a note. Other unlisted colours become background with a LayoutWarning.

    snap_colors  give strays (see `seg2any.layout.strays`) to the nearest colour of a region or background, with a note;
                 without, they are background with a LayoutWarning; None: if all listed colours are there and the strays
                 are soft edges or JPEG noise of them

    Raises LayoutError for a listed colour that no pixel has, and where giving strays away would take too long.
    """
    palette = read_palette(path)
    check_mask_shape(str(path), (len(regions), *palette.index.shape))
    listed = np.array([region.color for region in regions], dtype=np.int64)
    owner = _owners(palette, listed)
    split, notes = split_unlisted(palette, owner, listed), []
    if snap_colors is None:
        snap_colors = is_drawing(palette, split, owner, listed)
    labels = np.append(owner, -1)[palette.index]  # index -1, invisible, reads the last entry
    if len(split.strays) and snap_colors:
        check_snapping(str(path), len(split.anchors), palette.index.shape)
        labels, farthest = snapped(palette, split)
        notes.append(_snapped(palette, split, farthest))
    elif len(split.strays):
        _warn_strays(path, palette, split)
    background = split.background
    if paper := paper_of(palette, split):
        color, share = paper
        background = background[background != color]
        notes.append(f"{palette.rgb[color].tolist()} fills {share:.0%} of the border: it is paper, so background")
    _warn_background(path, palette, background)
    masks = np.stack([labels == n for n in range(len(regions))])
    for region, mask in zip(regions, masks, strict=True):
        if not mask.any():
            raise LayoutError(_missing_color(path, region, palette))
    return ColorMap(masks, tuple(notes))


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


def _owners(palette: Palette, listed: np.ndarray) -> np.ndarray:
    """Return int [K], the region that lists exactly this colour, or -1."""
    owner = np.full(len(palette.rgb), -1)
    for n, color in enumerate(listed):
        owner[(palette.rgb == color).all(axis=1)] = n
    return owner


def _snapped(palette: Palette, split: Split, farthest: float) -> str:
    """Describe what was snapped; farthest: the greatest RGB distance of a stray from the colour that it was given."""
    pixels = int(palette.pixels[split.strays].sum())
    return (
        f"{pixels} pixels in {len(split.strays)} colours that are not in the JSON (soft edges or JPEG noise) went to "
        f"the nearest colour, the farthest at a distance of {farthest:.0f} in RGB"
    )


def _warn_strays(path: Path, palette: Palette, split: Split) -> None:
    strays = split.strays
    top = strays[palette.pixels[strays].argmax()]
    near = split.anchors[nearest(palette.rgb[[top]], split.anchors)[0][0]]
    pixels = int(palette.pixels[strays].sum())
    warnings.warn(
        f"{path}: {pixels} pixels in {len(strays)} colours that are not in the JSON look like soft edges or JPEG noise "
        f"(such as {palette.rgb[top].tolist()} near {near.tolist()}) and count as background; use --snap_colors to "
        "merge them",
        LayoutWarning,
        stacklevel=2,
    )


def _warn_background(path: Path, palette: Palette, background: np.ndarray) -> None:
    if len(shown := sorted(background, key=lambda k: -palette.pixels[k])):
        names = ", ".join(f"{palette.rgb[k].tolist()} ({palette.pixels[k]} pixels)" for k in shown[:5])
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        warnings.warn(
            f"{path}: colour {names}{more} is not in the JSON and counts as background; add it to segments_info with a "
            "caption, or paint it black",
            LayoutWarning,
            stacklevel=2,
        )


def _missing_color(path: Path, region: Region, palette: Palette) -> str:
    message = f"{region.where}: color {list(region.color)} is not in {path.name}"
    if len(palette.rgb) == 0:
        return f"{message}, which is entirely transparent; paint the regions opaque"
    best, distance = nearest(np.array([region.color]), palette.rgb)
    there, pixels = palette.rgb[best[0]].tolist(), palette.pixels[best[0]]
    if distance[0] <= NEAR:
        return f"{message}; the nearest is {there} ({pixels} pixels): correct the colour or use --snap_colors"
    return f"{message}; correct the colour (the nearest there is {there}, {pixels} pixels) or remove the region"
