"""Make the tokens of the benchmarks' image, captioned ellipses in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout, layout_tokens
from seg2any.diffusion.prepare import draw_layout

PATCH = 16  # pixels per token side of FLUX.1
CAPTION_TOKENS = (80, 20)  # T5 tokens (image, region) of SACap-1M's mean captions, 58.6 and 14.1 words
NAME_TOKENS = (0, 4)  # ADE20K and COCO-Stuff: a class name per region, no caption of the whole image


@dataclass(frozen=True)
class SampleTokens:
    """A sample for `layout_tokens` without embeddings; see `seg2any.attention.tokens.Sample`."""

    text_lengths: tuple[int, ...]
    masks: np.ndarray
    cond_positions: np.ndarray | None = None
    coverage: np.ndarray | None = None


def ellipses(side: int, n: int) -> np.ndarray:
    """Draw n touching ellipses, bool [n, side, side]; together they cover pi / 4 of the image."""
    rows = round(math.sqrt(n))
    masks = np.zeros((n, side, side), bool)
    y, x = (np.arange(side)[:, None] + 0.5) / side * rows, (np.arange(side) + 0.5) / side
    for row, entities in enumerate(np.array_split(np.arange(n), rows)):
        for column, entity in enumerate(entities):
            masks[entity] = (2 * (y - row) - 1) ** 2 + (2 * (x * len(entities) - column) - 1) ** 2 < 1
    return masks


# Masks, bool [N, side, side], and numbers of text tokens: (global caption, region 1 .. N).
Entities = tuple[np.ndarray, tuple[int, ...]]


def tokens_of(samples: Sequence[Entities], side: int, patch: int, settings: ConditionSettings) -> TokenLayout:
    """Turn masks and text lengths into the token layout of a batch, without any network."""
    tokens = []
    for masks, lengths in samples:
        drawn = draw_layout(masks, (side, side), patch, settings)
        tokens.append(SampleTokens(lengths, drawn.masks, np.argwhere(drawn.kept), drawn.coverage))
    return layout_tokens(tokens, settings.cond_scale_factor)


def scene(
    side: int,
    n_entities: int,
    settings: ConditionSettings,
    text_tokens: tuple[int, int] = CAPTION_TOKENS,
    batch_size: int = 1,
    n_ellipses: int | None = None,
) -> TokenLayout:
    """Make the tokens of an image of side x side pixels, filled with touching ellipses.

    text_tokens  number of text tokens of the image's caption, and of each region's
    n_ellipses   number of ellipses, divided among the entities; None: one per entity
    """
    groups = np.array_split(ellipses(side, n_ellipses or n_entities), n_entities)
    masks = np.stack([group.any(0) for group in groups])
    lengths = (text_tokens[0],) + (text_tokens[1],) * n_entities
    return tokens_of([(masks, lengths)] * batch_size, side, PATCH, settings)
