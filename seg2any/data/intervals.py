"""Resize and outline regions given as run lengths, without drawing them.

Run lengths go column by column, so a region is a set of vertical intervals of pixels, one array entry each. Resizing
moves their ends. The outline is the two ends, and the pixels that the column to the left or to the right lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seg2any.data.dataset import RunLengths


@dataclass(frozen=True, eq=False)
class Intervals:
    """Pixels [start, stop) of `column` belong to `region`; all int64 [M], none touch.

    size  (H, W) of the picture
    """

    size: tuple[int, int]
    region: np.ndarray
    column: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def resized_intervals(regions: RunLengths, pixels: tuple[np.ndarray, np.ndarray]) -> Intervals:
    """Resize regions: pixel (i, j) shows the stored pixel (pixels[0][i], pixels[1][j])."""
    region, column, start, stop = _stored_intervals(regions)
    rows, columns = pixels
    height, width = regions.size
    rows_before = np.searchsorted(rows, np.arange(height + 1))
    columns_before = np.searchsorted(columns, np.arange(width + 1))
    start, stop = rows_before[start], rows_before[stop]
    first_column, copies = columns_before[column], np.diff(columns_before)[column]
    shown = np.flatnonzero((start < stop) & (copies > 0))
    # Where the gap between two intervals has vanished, they become one.
    stride = len(rows) + 1
    offset = (region[shown] * width + column[shown]) * stride
    opens = np.ones(len(shown), bool)
    opens[1:] = (offset + start[shown])[1:] != (offset + stop[shown])[:-1]
    closes = np.append(opens[1:], True)[: len(shown)]
    opening, closing = shown[opens], shown[closes]
    which, copy = _numbered(copies[opening])
    return Intervals(
        size=(len(rows), len(columns)),
        region=region[opening][which],
        column=first_column[opening][which] + copy,
        start=start[opening][which],
        stop=stop[closing][which],
    )


def outline(intervals: Intervals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels with a 4-neighbour outside their region, as intervals.

    Column, start and stop are int64 [K].

    Pixels beyond the picture are outside. Intervals may overlap; their union equals `seg2any.layout.contour.outline`.
    """
    height, width = intervals.size
    # Put all columns of all regions on one line, a free pixel after each column, a free column after each region.
    stride = height + 1
    offset = (intervals.region * (width + 1) + intervals.column) * stride
    starts, stops = offset + intervals.start, offset + intervals.stop
    # Shifted by one column, a region is its own left neighbour. The sorted ends of both are pairs that enclose the
    # pixels of exactly one of them. The lowest bit of an end tells whether it is the neighbour's; its running sum
    # tells whose pixels a pair encloses.
    ends = np.concatenate([starts, stops]) << 1
    ends = np.sort(np.concatenate([ends, (ends + (stride << 1)) | 1]))
    is_neighbour = np.cumsum(ends & 1)[::2] & 1
    lower, upper = ends[::2] >> 1, ends[1::2] >> 1
    lower, upper = lower - is_neighbour * stride, upper - is_neighbour * stride
    differs = lower < upper
    start = np.concatenate([lower[differs], starts, stops - 1])
    stop = np.concatenate([upper[differs], starts + 1, stops])
    line, start_row = np.divmod(start, stride)
    return line % (width + 1), start_row, start_row + (stop - start)


def _stored_intervals(regions: RunLengths) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut the runs of every region where a column ends. Returns region, column, start and stop."""
    height = regions.size[0]
    ends = [np.cumsum(runs) for runs in regions.runs]
    stop = np.concatenate([np.zeros(0, np.int64), *(end[1::2] for end in ends)])
    start = np.concatenate([np.zeros(0, np.int64), *(end[: len(end) // 2 * 2 : 2] for end in ends)])
    region = np.repeat(np.arange(len(ends)), [len(end) // 2 for end in ends])
    inside = start < stop
    start, stop, region = start[inside], stop[inside], region[inside]
    first, last = start // height, (stop - 1) // height
    which, number = _numbered(last - first + 1)
    column = first[which] + number
    top = column * height
    return (
        region[which],
        column,
        np.maximum(start[which] - top, 0),
        np.minimum(stop[which] - top, height),
    )


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat entry i counts[i] times, and number its copies.

    [2, 0, 3] -> [0, 0, 2, 2, 2] and [0, 1, 0, 1, 2].
    """
    which = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - first[which]
