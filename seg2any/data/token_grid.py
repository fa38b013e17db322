"""Find the condition tokens that see any of an outline, without making the condition image.

A token is kept if the condition image shows any of the outline in the token's patch. When the condition image has the
image's size or half of it, the same tokens follow from the outline at the image's size:

size  token t sees pixels [p t, p (t + 1)) of each axis, p = patch
half  the bilinear filter spans 4 x 4 pixels of the image, and its least weight, 1/64 of 255, still rounds to 4, so
      token t sees pixels [2 p t - 1, 2 p (t + 1) + 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seg2any.layout.contour import nearest_exact


@dataclass(frozen=True, eq=False)
class Grid:
    """Maps from pixels and tokens of a resized image to stored pixels, for (rows, columns).

    pixels     source pixel of each image pixel, ascending
    centres    image pixel at the centre of each image token
    condition  number of condition tokens
    unit       image pixels per condition token
    reach      image pixels beyond its unit that a condition token sees
    """

    pixels: tuple[np.ndarray, np.ndarray]
    centres: tuple[np.ndarray, np.ndarray]
    condition: tuple[int, int]
    unit: int
    reach: int


def make_grid(pixels: tuple[np.ndarray, np.ndarray], cond_size: tuple[int, int], patch: int) -> Grid | None:
    """Return the grid; None if the condition image is neither as large as the image nor half."""
    height, width = map(len, pixels)
    for scale in (1, 2):
        if (height, width) == (scale * cond_size[0], scale * cond_size[1]):
            centres = nearest_exact(height, height // patch), nearest_exact(width, width // patch)
            return Grid(pixels, centres, (cond_size[0] // patch, cond_size[1] // patch), patch * scale, scale - 1)
    return None


def tokens_of_intervals(column: np.ndarray, start: np.ndarray, stop: np.ndarray, grid: Grid) -> int:
    """Count the condition tokens that see pixels [start, stop) of `column`, all int [M].

    Each interval covers a rectangle of tokens. Only its corners are marked; running sums fill the rectangles.
    """
    (n_rows, n_columns), unit, reach = grid.condition, grid.unit, grid.reach
    top = np.clip((start - reach) // unit, 0, n_rows)
    bottom = np.minimum((stop - 1 + reach) // unit, n_rows) + 1
    left = np.clip((column - reach) // unit, 0, n_columns)
    right = np.minimum((column + reach) // unit, n_columns) + 1
    shape = n_rows + 2, n_columns + 2
    change = np.zeros(shape, np.int64)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        corners = np.bincount(rows * shape[1] + columns, minlength=change.size)
        change += sign * corners.reshape(shape)
    return int(np.count_nonzero(change.cumsum(0).cumsum(1)[:n_rows, :n_columns]))


def tokens_of_raster(outline: np.ndarray, grid: Grid) -> int:
    """Count the condition tokens that see any pixel of `outline`, bool [H, W]."""
    seen = outline
    for number in grid.condition:  # rows of tokens, then, transposed, columns
        seen = np.ascontiguousarray(_seen_along_rows(seen, number, grid).T)
    return int(np.count_nonzero(seen))


def _seen_along_rows(pixels: np.ndarray, number: int, grid: Grid) -> np.ndarray:
    """Return bool [number, W]: any of the rows of bool [H, W] that each token sees."""
    unit = grid.unit
    blocks = pixels[: number * unit].reshape(number, unit, -1)
    seen = np.logical_or.reduce(blocks, axis=1)
    if grid.reach:
        seen[1:] |= blocks[:-1, -1]
        below = pixels[unit : number * unit + 1 : unit]
        seen[: len(below)] |= below
    return seen
