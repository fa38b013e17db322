"""Tell soft edges and JPEG noise from colours that were painted on purpose.

An unlisted colour that fills no area, or is near to a colour that fills one, is a stray. Strays between the colours of
a drawing are its soft edges; large areas of them are a gradient, a texture or a photo.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from seg2any.layout.palette import NEAR, NOISE, SQUARE, Palette, fills_area, nearest

LEAST_AREA = 0.005  # of the pixels, for a colour of its own near to a listed one
WIDEST_EDGE = 1 / 16  # of the shorter side: what is wider is no soft edge
LEAST_WIDTH = 8  # pixels that an edge may be wide in small pictures
MOST_OTHERS = 0.1  # of the pixels between the colours of a drawing are no mixture of two of them, at most
OFF_MIXTURE = 24.0  # RGB distance of a mixture from the line between two colours, at most
OFF_MIXTURE_LOSSY = 72.0  # likewise in a JPEG, which keeps half of the lines and columns of colours
AT_HAND = 3  # pixels around a stray in which a drawing's colours are looked for first
MOST_ANCHORS = 32  # whose pairs are tried
MOST_BACKGROUNDS = 32  # of a drawing; pictures with more take too long to look at each colour's neighbours
STEP = 8  # colours are rounded to this before pairs are tried: a JPEG may have 50,000 of them


@dataclass(frozen=True)
class Split:
    """The unlisted colours of a palette.

    strays      int, indices of stray colours
    background  int, indices of colours other than black that fill areas of background, the commonest first
    anchors     int [A, 3], the listed colours, then black if it fills an area, then those of the background
    known       int [K], the anchor that has exactly this colour, or -1
    reach       RGB distance of a stray from the colour that it is noise of, at most
    """

    strays: np.ndarray
    background: np.ndarray
    anchors: np.ndarray
    known: np.ndarray
    reach: float


def split_unlisted(palette: Palette, owner: np.ndarray, listed: np.ndarray) -> Split:
    """Split the colours that no region lists into strays and background.

    owner   int [K], the region that lists exactly this colour, or -1
    listed  int [N, 3]

    A colour fills an area if somewhere a pixel and its eight neighbours have it, which hardly happens in a soft edge.
    """
    is_black, near = palette.is_black, _reach(palette, listed)
    painted = palette.filled & (owner < 0)
    black = np.zeros((int(_has_black(palette, owner, listed, is_black | ~painted)), 3), dtype=np.int64)
    far = nearest(palette.rgb, np.concatenate([listed, black]))[1] > near
    left = painted & ~is_black & (far | _is_own_color(palette, owner, listed))
    background = []
    while left.any():
        commonest = np.where(left, palette.pixels, 0).argmax()
        background.append(commonest)
        left &= nearest(palette.rgb, palette.rgb[[commonest]])[1] > near
    is_stray = (owner < 0) & ~is_black
    is_stray[background] = False
    background = np.array(background, dtype=np.int64)
    anchors = np.concatenate([listed, black, palette.rgb[background]])
    known = np.where(is_black & (owner < 0) & bool(len(black)), len(listed), owner)
    known[background] = len(listed) + len(black) + np.arange(len(background))
    return Split(np.flatnonzero(is_stray), background, anchors, known, near)


def is_drawing(palette: Palette, split: Split, owner: np.ndarray, listed: np.ndarray) -> bool:
    """Tell whether all listed colours are there, and the strays are soft edges and noise of the anchors.

    owner, listed  as in `split_unlisted`

    Only where a picture is lossy or noisy may a colour differ from the listed one.
    """
    if len(split.background) > MOST_BACKGROUNDS:
        return False
    absent = np.setdiff1d(np.arange(len(listed)), owner)
    noise = NOISE if palette.is_noisy else 0.0
    limit = split.reach if palette.is_lossy else min(noise, split.reach)
    best, distance = nearest(palette.rgb, split.anchors)
    unlisted = (owner < 0) & (distance <= limit)
    all_there = all(fills_area(palette.where(unlisted & (best == n))) for n in absent)
    was_lossy = palette.is_lossy or len(absent) > 0
    return all_there and _are_edges(palette, split, OFF_MIXTURE_LOSSY if was_lossy else OFF_MIXTURE)


def _are_edges(palette: Palette, split: Split, most_off: float) -> bool:
    """Tell whether the strays beyond noise are thin, and mixtures of two anchors up to a distance of `most_off`."""
    rgb, pixels = palette.rgb[split.strays], palette.pixels[split.strays]
    between = nearest(rgb, split.anchors)[1] > split.reach
    if not between.any():
        return True
    chosen = np.zeros(len(palette.rgb), dtype=bool)
    chosen[split.strays[between]] = True
    square = np.ones((_widest_edge(palette) + 1,) * 2, dtype=np.uint8)
    areas = cv2.erode(palette.where(chosen).astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    if areas.any():
        return False
    off = _off_mixture(rgb[between], split.anchors) > most_off
    return pixels[between][off].sum() <= MOST_OTHERS * pixels[between].sum()


def snapped(palette: Palette, split: Split) -> tuple[np.ndarray, float]:
    """Give every stray to an anchor: int [H, W], -1 for pixels without one, and the greatest distance in RGB.

    Noise goes to the anchor that it surrounds; an edge to the nearest of those beside it, since a mixture of two
    colours may look like a third: red on white passes pink.
    """
    anchor = split.known.copy()
    anchor[split.strays] = nearest(palette.rgb[split.strays], split.anchors)[0]
    found = np.append(anchor, -1)[palette.index]  # index -1, invisible, reads the last entry
    solid = _solid(palette, split) if len(split.background) <= MOST_BACKGROUNDS else found
    rows, columns = np.nonzero((found >= 0) & (solid < 0))
    colors = palette.rgb[palette.index[rows, columns]]
    left = np.ones(len(rows), dtype=bool)
    for width in (AT_HAND, _widest_edge(palette)):
        chosen, off = _nearest_beside(solid, (rows[left], columns[left]), colors[left], split.anchors, width)
        places = np.flatnonzero(left)[np.isfinite(off)]
        found[rows[places], columns[places]] = chosen[np.isfinite(off)]
        left[places] = False
    changed = found != np.append(split.known, -1)[palette.index]
    differences = palette.rgb[palette.index[changed]] - split.anchors[found[changed]]
    return found, float(np.sqrt((differences**2).sum(axis=1).max(initial=0)))


def _solid(palette: Palette, split: Split) -> np.ndarray:
    """Find the pixels of each anchor's colour and the noise around them: int [H, W], -1 = neither.

    Pixels within reach of a colour are noise of it if they hang together with an area of it.
    """
    best, distance = nearest(palette.rgb, split.anchors)
    solid = np.append(split.known, -1)[palette.index]
    is_stray = np.zeros(len(palette.rgb), dtype=bool)
    is_stray[split.strays] = True
    for n in range(len(split.anchors)):
        exact = palette.where(split.known == n)
        near = palette.where(is_stray & (best == n) & (distance <= split.reach)) | exact
        flat = palette.where(is_stray & (best == n) & (distance <= min(NOISE, split.reach))) | exact
        seeds = cv2.morphologyEx(flat.astype(np.uint8), cv2.MORPH_OPEN, SQUARE).astype(bool)
        seeds = seeds if seeds.any() else exact if exact.any() else near
        _, parts = cv2.connectedComponents(near.astype(np.uint8))
        solid[near & np.isin(parts, np.unique(parts[seeds]))] = n
    return solid


def _nearest_beside(
    solid: np.ndarray, places: tuple[np.ndarray, np.ndarray], colors: np.ndarray, anchors: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest anchor within `width` pixels of each place: its number int [P], distance float [P], or inf."""
    chosen, off = np.full(len(colors), -1), np.full(len(colors), np.inf)
    square = np.ones((2 * width + 1,) * 2, dtype=np.uint8)
    for n in range(len(anchors) if len(colors) else 0):
        beside = np.flatnonzero(cv2.dilate((solid == n).astype(np.uint8), square)[places])
        distance = np.linalg.norm(colors[beside] - anchors[n], axis=1)
        closer = distance < off[beside]
        chosen[beside[closer]], off[beside[closer]] = n, distance[closer]
    return chosen, off


def _widest_edge(palette: Palette) -> int:
    return max(LEAST_WIDTH, round(min(palette.index.shape) * WIDEST_EDGE))


def paper_of(palette: Palette, split: Split) -> tuple[int, float] | None:
    """Find the background colour that fills most of the border, and its share of it; None without one."""
    border = palette.border()
    best, distance = nearest(palette.rgb, split.anchors)
    first = len(split.anchors) - len(split.background)
    belongs = np.where(distance <= split.reach, best, -1)
    of_border = np.append(belongs, -1)[border]
    counts = np.bincount(of_border[of_border >= first] - first, minlength=1)
    share = float(counts.max() / len(border))
    return (int(split.background[counts.argmax()]), share) if share > 0.5 else None


def _off_mixture(rgb: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the distance of each colour, [K, 3], from the nearest line between two anchors: float [K]."""
    rounded, index = np.unique((rgb + STEP // 2) // STEP, axis=0, return_inverse=True)
    colors, off = (rounded * STEP).astype(np.float64), np.full(len(rounded), np.inf)
    for one, other in itertools.combinations(anchors[:MOST_ANCHORS].astype(np.float64), 2):
        line = other - one
        share = ((colors - one) @ line / max(line @ line, 1.0)).clip(0, 1)
        np.minimum(off, np.linalg.norm(colors - one - share[:, None] * line, axis=1), out=off)
    return off[index.reshape(-1)]


def _reach(palette: Palette, listed: np.ndarray) -> float:
    """Return the greatest distance of a stray: NEAR, or less where colours are close, as in pictures of labels.

    It is less than half of the least distance between two listed colours, or one and black if there is black.
    """
    black = np.zeros((int(palette.is_black.any()), 3), dtype=np.int64)
    colors = np.unique(np.concatenate([listed, black]), axis=0)
    distances = np.sqrt(((colors[:, None] - colors[None]) ** 2).sum(axis=2))
    return min(NEAR, 0.49 * distances[distances > 0].min(initial=np.inf))


def _is_own_color(palette: Palette, owner: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Find unlisted colours, bool [K], near to a listed one but painted on purpose beside it.

    Such a colour and the listed one both fill areas, and hardly any other unlisted colour is near, as noise would be.
    """
    noise, filled = NOISE if palette.is_noisy else 0.0, palette.filled
    own = filled & (owner < 0) & (palette.pixels >= LEAST_AREA * palette.index.size)
    best, distance = nearest(palette.rgb, listed)
    for k in np.flatnonzero(own):
        around = (owner < 0) & (nearest(palette.rgb, palette.rgb[[k]])[1] <= NEAR) & ~palette.is_black
        is_alone = palette.pixels[k] >= 0.75 * palette.pixels[around].sum()
        own[k] = distance[k] > noise and filled[owner == best[k]].any() and is_alone
    return own


def _has_black(palette: Palette, owner: np.ndarray, listed: np.ndarray, may_be: np.ndarray) -> bool:
    """Return True if black, with JPEG noise on it, fills a 3x3 square.

    In narrow black areas of a JPEG no nine pixels are equal, so that `Palette.filled` misses them.

    may_be: bool [K], colours that count as black if they are near to it, and nearer than to any listed colour
    """
    distance = nearest(palette.rgb, np.zeros((1, 3), dtype=np.int64))[1]
    dark = may_be & (owner < 0) & (distance <= NEAR) & (distance < nearest(palette.rgb, listed)[1])
    return fills_area(palette.where(dark))
