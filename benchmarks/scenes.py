"""The image that benchmarks make: ellipses in rows and columns, each with a caption, and their contours."""

from __future__ import annotations

import math

import numpy as np

from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import SampleTokens, TokenLayout, layout_tokens
from seg2any.diffusion.prepare import draw_layout

PATCH = 16  # pixels per token side of FLUX.1
CAPTION_TOKENS = (80, 20)  # of T5: SACap-1M's mean captions have 58.6 words, of a region 14.1
NAME_TOKENS = (0, 4)  # ADE20K and COCO-Stuff: class names, no caption of the whole image


def ellipses(side: int, n: int) -> np.ndarray:
    """bool [n, side, side]: n ellipses that touch each other, together pi / 4 of the image whatever n is."""
    rows = round(math.sqrt(n))
    masks = np.zeros((n, side, side), bool)
    y, x = (np.arange(side)[:, None] + 0.5) / side * rows, (np.arange(side) + 0.5) / side
    for row, entities in enumerate(np.array_split(np.arange(n), rows)):
        for column, entity in enumerate(entities):
            masks[entity] = (2 * (y - row) - 1) ** 2 + (2 * (x * len(entities) - column) - 1) ** 2 < 1
    return masks


def scene(
    side: int,
    n_entities: int,
    settings: ConditionSettings,
    text_tokens: tuple[int, int] = CAPTION_TOKENS,
    batch_size: int = 1,
    n_ellipses: int | None = None,
) -> TokenLayout:
    """The tokens of an image of side x side pixels, all that generation does before the first step but the encoders.

    text_tokens  of the image's caption, and of each region's
    n_ellipses   shared out to the entities; None: one for each
    """
    groups = np.array_split(ellipses(side, n_ellipses or n_entities), n_entities)
    drawn = draw_layout(np.stack([group.any(0) for group in groups]), (side, side), PATCH, settings)
    lengths = (text_tokens[0],) + (text_tokens[1],) * n_entities
    sample = SampleTokens(lengths, drawn.masks, np.argwhere(drawn.kept))
    return layout_tokens([sample] * batch_size, settings.cond_scale_factor)
