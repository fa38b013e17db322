"""Decode masks stored as run lengths, as in COCO and SA-1B.

Runs of pixels outside and inside alternate, outside first, column by column.

`counts` is a list of runs, or a string. In the string every run from the fourth on is the difference to the run two
before it. A number is written in groups of 5 bits, lowest first, one character each: chr(48 + bits), plus 32 if more
groups follow; the highest bit of the last group is the sign.
"""

from __future__ import annotations

import numpy as np

from seg2any.layout.checks import LayoutError, check_mask_shape
from seg2any.system.errors import shown


def decode_rle(where: str, segmentation: dict) -> np.ndarray:
    """Decode {"size": [H, W], "counts": str | list[int]} to a mask, bool [H, W].

    Raises LayoutError that starts with `where`, also for a mask without a pixel.
    """
    mask = draw_runs(*decode_runs(where, segmentation))
    if not mask.any():
        raise LayoutError(f"{where}: segmentation has no pixel; remove the region")
    return mask


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask, bool [H, W], as {"size": [H, W], "counts": list[int]}."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def compressed(runs: np.ndarray) -> str:
    """Write run lengths int [R] as the string that COCO and SA-1B store."""
    numbers = np.array(runs, dtype=np.int64)
    numbers[3:] -= np.asarray(runs)[1:-2]
    characters = []
    for number in numbers.tolist():
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            characters.append(48 + bits + 32 * more)
    return bytes(characters).decode("ascii")


def draw_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw runs int [R] of pixels outside and inside in turn, column by column: bool [H, W]."""
    height, width = size
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_runs(where: str, segmentation: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode and check runs, int64 [R], and size, (H, W), without drawing them.

    The mask may have no pixel. Raises LayoutError.
    """
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(side) and side > 0 for side in size):
        raise LayoutError(f"{where}: segmentation size is {shown(size)}; write [height, width]")
    height, width = size
    check_mask_shape(where, (1, height, width))
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        runs = _decompress(where, counts)
    elif isinstance(counts, list) and all(_is_count(run) for run in counts):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise LayoutError(f"{where}: segmentation counts are {shown(counts)}; write a string or a list of run lengths")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise LayoutError(
            f"{where}: segmentation counts cover {int(runs.sum())} pixels, but its size {width}x{height} has "
            f"{height * width}; store the mask again"
        )
    return runs, (height, width)


def _decompress(where: str, counts: str) -> np.ndarray:
    codes = np.frombuffer(counts.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise LayoutError(f"{where}: segmentation counts {shown(counts)} are damaged; store the mask again")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits, far above any pixel count
        raise LayoutError(f"{where}: segmentation counts {shown(counts)} are damaged; store the mask again")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])  # run 0 is in no sum: differences begin at the fourth run
    return runs


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
