"""Lay out the tokens of a batch: kinds, entity bit sets, positions and padding.

Sequence of every sample:  [global text | region 1 .. region N | text pad | image | cond | cond pad]

Shape suffixes: B batch, N entities, L tokens, H W pixels, h w token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from typing import Protocol

import numpy as np
import torch

from seg2any.attention.settings import MAX_ENTITIES
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError


class Kind(IntEnum):
    """Kind of a token.

    Padding sees only padding of its own kind, so text and condition padding are two kinds.
    """

    GLOBAL = 0
    REGION = 1
    IMAGE = 2
    COND = 3
    TEXT_PAD = 4
    COND_PAD = 5


class Sample(Protocol):
    """One sample before batching.

    text_lengths:   text tokens of (global, region 1, .., region N); global is 0 without a global caption
    masks:          bool [N, h, w] on the token grid
    cond_positions: int [n, 2], (row, col) of the kept tokens on the condition's own grid; None = no condition stream
    coverage:       float [N, h, w] in [0, 1], see `token_coverage`; None unless the mask method is `place`
    """

    text_lengths: tuple[int, ...]
    masks: np.ndarray
    cond_positions: np.ndarray | None
    coverage: np.ndarray | None


@dataclass(frozen=True)
class TokenLayout:
    """A batch of token sequences on the CPU, padded to equal length.

    kind:      int32 [B, L], a `Kind`
    entities:  int64 [B, L], bit set: an image token's entities (0 = background), a region token's own single bit
    positions: float32 [B, L, 3], RoPE ids (0, row, col) on the image's token grid; text and padding are (0, 0, 0)
    n_text, n_image, n_cond: tokens of each part, with padding
    coverage:  float32 [B, N, h*w] or None, see `Sample`
    """

    kind: torch.Tensor
    entities: torch.Tensor
    positions: torch.Tensor
    n_text: int
    n_image: int
    n_cond: int
    coverage: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.kind.shape[0]


def layout_tokens(samples: Sequence[Sample], cond_scale_factor: int = 1) -> TokenLayout:
    """Lay out the tokens of all samples, padded to equal length.

    A batch with a condition stream gets at least one condition row, even if it is padding: without it the `cond`
    adapter would receive no gradient, and distributed training would wait for that gradient forever.
    cond_scale_factor s: condition positions are multiplied by s, because the condition is drawn at 1/s of the image's
    resolution.

    Raises UserError for more than MAX_ENTITIES regions, and for samples whose parts or sizes do not fit together.
    """
    for sample in samples:
        _check(sample)
    grids = {sample.masks.shape[1:] for sample in samples}
    if len(grids) != 1:
        raise UserError(f"the images of a batch have different token grids, {sorted(grids)}; give images of one size")
    n_text = max(sum(sample.text_lengths) for sample in samples)
    n_cond = max(0 if s.cond_positions is None else max(1, len(s.cond_positions)) for s in samples)
    rows = [_sample_row(sample, n_text, n_cond, cond_scale_factor) for sample in samples]
    kind, entities, positions = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    n_image = int(np.prod(grids.pop()))
    return TokenLayout(kind, entities, positions, n_text, n_image, n_cond, _stack_coverage(samples))


def _check(sample: Sample) -> None:
    n_entities = len(sample.masks)
    if len(sample.text_lengths) != n_entities + 1:
        raise UserError(f"{n_entities} masks have {len(sample.text_lengths)} text lengths; give {n_entities + 1}")
    if n_entities > MAX_ENTITIES:
        raise UserError(f"an image has {n_entities} regions, more than {MAX_ENTITIES}; merge or remove some")


def _sample_row(
    sample: Sample, n_text: int, n_cond: int, cond_scale_factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return kind [L], entities [L] and positions [L, 3] of one sample."""
    bits = np.int64(1) << np.arange(len(sample.masks), dtype=np.int64)
    covering = np.where(sample.masks, bits[:, None, None], np.int64(0))
    image = reduce(np.bitwise_or, covering, np.zeros(sample.masks.shape[1:], np.int64)).ravel()
    cond = np.zeros((0, 2), np.int64) if sample.cond_positions is None else np.asarray(sample.cond_positions)
    text_pad, cond_pad = n_text - sum(sample.text_lengths), n_cond - len(cond)

    lengths = [*sample.text_lengths, text_pad, image.size, len(cond), cond_pad]
    regions = [Kind.REGION] * len(bits)
    kinds = [Kind.GLOBAL, *regions, Kind.TEXT_PAD, Kind.IMAGE, Kind.COND, Kind.COND_PAD]
    kind = np.repeat(np.array(kinds, np.int32), lengths)
    entities = np.repeat(np.array([0, *bits, 0, 0, 0, 0], np.int64), lengths)
    entities[n_text : n_text + image.size] = image

    positions = np.zeros((kind.size, 3), np.float32)
    positions[n_text : n_text + image.size, 1:] = np.indices(sample.masks.shape[1:]).reshape(2, -1).T
    positions[n_text + image.size : kind.size - cond_pad, 1:] = cond * cond_scale_factor
    return kind, entities, positions


def _stack_coverage(samples: Sequence[Sample]) -> torch.Tensor | None:
    if any(sample.coverage is None for sample in samples):
        return None
    stacked = torch.zeros(len(samples), max(len(s.masks) for s in samples), int(np.prod(samples[0].masks.shape[1:])))
    for row, sample in zip(stacked, samples, strict=True):
        row[: len(sample.masks)] = torch.from_numpy(sample.coverage).flatten(1)
    return stacked


def token_coverage(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Compute the fraction of each token's area that a mask covers, for method `place`.

    masks bool [N, H, W] -> float32 [N, h, w] in [0, 1]. Exact for every size: a pixel that several tokens share counts
    for each with the part that lies in it.
    """
    rows, cols = (_overlap(n_pixels, n_tokens) for n_pixels, n_tokens in zip(masks.shape[1:], grid, strict=True))
    covered = rows @ masks.astype(np.float64) @ cols.T
    return (covered / np.prod(masks.shape[1:])).astype(np.float32)


def _overlap(n_pixels: int, n_tokens: int) -> np.ndarray:
    """Return overlaps of token and pixel [n_tokens, n_pixels], in 1 / (n_pixels * n_tokens)."""
    token, pixel = np.arange(n_tokens)[:, None] * n_pixels, np.arange(n_pixels)[None] * n_tokens
    overlap = np.minimum(token + n_pixels, pixel + n_tokens) - np.maximum(token, pixel)
    return np.maximum(overlap, 0).astype(np.float64)


def token_masks(masks: np.ndarray, grid: tuple[int, int], assignment: str = "nearest") -> np.ndarray:
    """Assign tokens to entities: masks bool [N, H, W] -> bool [N, h, w], True = owned.

    nearest:  the pixel at the token's centre decides (published behaviour); a small entity may own no token
    coverage: every entity with pixels owns at least one token, see `_by_coverage`

    Raises UserError for another assignment.
    """
    assignments = {"nearest": resize_masks, "coverage": _by_coverage}
    if assignment not in assignments:
        raise UserError(f"region_assignment is {assignment!r}; use one of {', '.join(assignments)}")
    return assignments[assignment](masks, grid)


def _by_coverage(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Assign each token to the entities that cover enough of it, and a token to each entity.

    An entity owns a token if it covers more than half of it, or more than any other entity (the upper one of two equal
    ones) and no less than the background. Then each entity that has pixels but no token, from the top down, gets the
    token that it covers most, shared with the owners; tokens not yet given away in this way come first.
    """
    coverage = token_coverage(masks, grid)
    if not len(masks):
        return coverage > 0
    background = token_coverage(~masks.any(0, keepdims=True), grid)[0]
    top = len(masks) - 1 - coverage[::-1].argmax(0)
    most = (np.arange(len(masks))[:, None, None] == top) & (coverage > 0) & (coverage >= background)
    owned = (coverage > 0.5) | most
    chosen = np.zeros(grid, bool)
    for entity in reversed(np.flatnonzero(masks.any((1, 2)) & ~owned.any((1, 2)))):
        wish = np.where(coverage[entity] > 0, coverage[entity] - chosen, -np.inf)
        token = np.unravel_index(wish.argmax(), grid)
        owned[entity][token] = chosen[token] = True
    return owned
