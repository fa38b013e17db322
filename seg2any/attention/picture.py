"""Attention rules as a picture."""

from __future__ import annotations

import numpy as np

from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout


def picture(tokens: TokenLayout, attention: Attention, settings: ConditionSettings, sample: int = 0) -> np.ndarray:
    """uint8 RGB [L, L, 3]: rows are queries, columns keys, coloured by the kind of key; white = not seen."""
    palette = np.array([[230, 159, 0], [0, 158, 115], [86, 180, 233], [204, 121, 167], [120, 120, 120], [60, 60, 60]])
    weight = additive_mask(tokens, attention, settings)[sample, 0].exp().cpu().numpy()[..., None]
    colour = palette[tokens.kind[sample].cpu().numpy()][None]
    return (colour * weight + 255 * (1 - weight)).round().astype(np.uint8)
