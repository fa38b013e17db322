"""Count the tokens of a sample from its annotation, without reading or drawing images.

The definition is what training does: masks are brought to the image's size (nearest-exact), their outline to the size
of the condition image (bilinear), and tokens that hold any of it are kept. The counts here are equal and many times
faster; `benchmarks/bucket_map.py` measures both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import cv2
import numpy as np

from seg2any.data.aspect import window
from seg2any.data.dataset import LabelMap, MaskStack, Regions, RunLengths
from seg2any.data.intervals import outline, resized_intervals
from seg2any.data.token_grid import Grid, make_grid, tokens_of_intervals, tokens_of_raster
from seg2any.layout.contour import condition_image, kept_tokens, nearest_exact, resize_masks

EMPTY_REGION = 1  # a region has no pixel in its stored form
VANISHED_REGION = 2  # a region with pixels has none at the image's size
REGION_WITHOUT_TOKEN = 4  # a region with pixels there covers no image token's centre (region_assignment nearest)


@dataclass(frozen=True)
class RegionCounts:
    """Kept condition tokens of one sample, and the sum of the flags of its regions."""

    condition: int
    flags: int


def condition_length(
    regions: Regions, size: tuple[int, int], cond_size: tuple[int, int], patch: int = 16, aspect: str = "stretch"
) -> int:
    """Count the kept condition tokens of an image of `size` (H, W).

    cond_size  (H, W) of the condition image, in pixels
    patch   pixels per token side: VAE scale factor times 2, 16 for FLUX.1
    aspect  how stored pixels become `size`, see `seg2any.data.aspect`
    """
    return count_regions(regions, size, cond_size, patch, aspect).condition


def count_regions(
    regions: Regions, size: tuple[int, int], cond_size: tuple[int, int], patch: int = 16, aspect: str = "stretch"
) -> RegionCounts:
    """Count as `condition_length` does, and flag regions that are empty, vanish or own no token."""
    grid = _grid(tuple(regions.size), tuple(size), tuple(cond_size), patch, aspect)
    if grid is None:
        return _count_drawn(regions, size, cond_size, patch, aspect)
    if isinstance(regions, RunLengths):
        return _count_runs(regions, grid)
    return _count_labels(regions, grid) if isinstance(regions, LabelMap) else _count_stack(regions, grid)


def text_lengths(
    captions: Sequence[Sequence[str]], tokenizer: object, known: Mapping[str, int] | None = None
) -> list[list[int]]:
    """Count the tokens of all captions of all samples, with `</s>`, uncut, not padded.

    known  lengths of captions that need not be counted again

    The tokenizer is called once, for all distinct captions. The call switches padding and truncation off; a call of
    `backend_tokenizer` would count whatever padding the previous call left switched on.
    """
    length = dict(known or {})
    new = [caption for caption in dict.fromkeys(chain.from_iterable(captions)) if caption not in length]
    if new:
        encoded = tokenizer(new, padding=False, truncation=False, return_attention_mask=False, verbose=False)
        length.update(zip(new, map(len, encoded.input_ids), strict=True))
    return [[length[caption] for caption in sample] for sample in captions]


@lru_cache(maxsize=256)  # photos come in few sizes
def _grid(
    source: tuple[int, int], size: tuple[int, int], cond_size: tuple[int, int], patch: int, aspect: str
) -> Grid | None:
    rows, columns = (
        part.start + nearest_exact(part.stop - part.start, side)
        for part, side in zip(window(source, size, aspect), size, strict=True)
    )
    return make_grid((rows, columns), cond_size, patch)


def _count_drawn(
    regions: Regions, size: tuple[int, int], cond_size: tuple[int, int], patch: int, aspect: str
) -> RegionCounts:
    """Count by the definition, for condition images of any size."""
    stored = regions.masks()
    rows, columns = window(regions.size, size, aspect)
    masks = resize_masks(stored[:, rows, columns], size)
    on_tokens = resize_masks(masks, (size[0] // patch, size[1] // patch))
    kept = kept_tokens(condition_image(masks, cond_size), patch)
    return RegionCounts(int(kept.sum()), _flags(*(stack.any((1, 2)) for stack in (stored, masks, on_tokens))))


def _count_runs(regions: RunLengths, grid: Grid) -> RegionCounts:
    number = len(regions.runs)
    intervals = resized_intervals(regions, grid.pixels)
    height, width = intervals.size
    is_centre = np.zeros(width, bool)
    is_centre[grid.centres[1]] = True
    centres_before = np.searchsorted(grid.centres[0], np.arange(height + 1))
    owns = is_centre[intervals.column] & (centres_before[intervals.start] < centres_before[intervals.stop])
    return RegionCounts(
        tokens_of_intervals(*outline(intervals), grid),
        _flags(
            stored=np.array([runs[1::2].any() for runs in regions.runs], bool),
            shown=np.bincount(intervals.region, minlength=number) > 0,
            owning=np.bincount(intervals.region[owns], minlength=number) > 0,
        ),
    )


def _count_labels(regions: LabelMap, grid: Grid) -> RegionCounts:
    values = np.asarray(regions.values, regions.labels.dtype)
    labels = _resized(regions.labels, grid)
    is_centre = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
    is_centre[_at_centres(labels, grid)] = True
    owning = is_centre[values]
    # Most regions own a token, so only few have to be searched for in all pixels.
    shown = np.array([owns or (labels == value).any() for value, owns in zip(values, owning, strict=True)], bool)
    stored = np.array([has or (regions.labels == value).any() for value, has in zip(values, shown, strict=True)], bool)
    edges = _unequal_to_a_neighbour(labels)
    edges &= _is_region(labels, regions)
    return RegionCounts(tokens_of_raster(edges, grid), _flags(stored, shown, owning))


def _count_stack(regions: MaskStack, grid: Grid) -> RegionCounts:
    edges = np.zeros((len(grid.pixels[0]), len(grid.pixels[1])), bool)
    found = [np.zeros((3, 0), bool)]
    for first in range(0, len(regions.stack), 8):
        masks = regions.stack[first : first + 8]
        # Mask i is bit i of `bits`: eight masks are resized and compared at once.
        bits = np.zeros(regions.size, np.uint8)
        for number, mask in enumerate(masks):
            bits |= mask.astype(np.uint8) << number
        resized = _resized(bits, grid)
        edges |= _lacks_a_neighbour(resized)
        rasters = bits, resized, _at_centres(resized, grid)
        present = np.array([np.bitwise_or.reduce(raster, axis=None, initial=0) for raster in rasters], np.uint8)
        found.append(np.unpackbits(present[:, None], axis=1, bitorder="little", count=len(masks)).astype(bool))
    return RegionCounts(tokens_of_raster(edges, grid), _flags(*np.concatenate(found, axis=1)))


def _flags(stored: np.ndarray, shown: np.ndarray, owning: np.ndarray) -> int:
    """Combine flags: which regions bool [N] have pixels as stored, resized, at a centre."""
    flags = EMPTY_REGION * bool((~stored).any())
    flags |= VANISHED_REGION * bool((stored & ~shown).any())
    return flags | REGION_WITHOUT_TOKEN * bool((shown & ~owning).any())


def _resized(raster: np.ndarray, grid: Grid) -> np.ndarray:
    """Resize a raster of uint8 or uint16, nearest-exact.

    Columns are picked as rows of the transpose, because copying rows is faster than picking pixels.
    """
    rows, columns = grid.pixels
    return cv2.transpose(cv2.transpose(raster.take(rows, axis=0)).take(columns, axis=0))


def _at_centres(raster: np.ndarray, grid: Grid) -> np.ndarray:
    return raster[grid.centres[0][:, None], grid.centres[1]]


def _is_region(labels: np.ndarray, regions: LabelMap) -> np.ndarray:
    """Return bool [H, W]: pixels whose label is one of the values."""
    if regions.background is not None:
        return labels != regions.background
    table = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
    table[list(regions.values)] = True
    return table[labels]


def _unequal_to_a_neighbour(labels: np.ndarray) -> np.ndarray:
    """Return bool [H, W]: pixels with a 4-neighbour of another label, or at the border."""
    unequal = np.ones(labels.shape, bool)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    np.logical_or(rows[1:], rows[:-1], out=unequal[1:-1])
    unequal[:, 1:-1] |= columns[:, 1:]
    unequal[:, 1:-1] |= columns[:, :-1]
    unequal[:, [0, -1]] = True
    return unequal


def _lacks_a_neighbour(bits: np.ndarray) -> np.ndarray:
    """Return bool [H, W]: pixels of uint8 `bits` with a 4-neighbour that lacks a bit of theirs.

    Beyond the border, all bits are lacking.
    """
    everywhere = np.zeros_like(bits)
    everywhere[1:-1, 1:-1] = bits[:-2, 1:-1] & bits[2:, 1:-1] & bits[1:-1, :-2] & bits[1:-1, 2:]
    return (bits & ~everywhere) != 0
