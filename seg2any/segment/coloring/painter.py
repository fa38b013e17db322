"""Have a flow model paint a photo's instances by one prediction, at the extreme of noise.

    photo --> latents --> velocity v at s = 1 --> x0 = -v --> decoded --> colours

The prediction starts at the constant 0 instead of noise, so x0 = x1 - v = -v. The photo is the condition stream, all
its tokens kept; or it takes the place of the noise, as in gen2seg (arXiv 2505.15263), with the same rule x0 = -v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base, Condition, Grid, Posterior
from seg2any.bases.text import EncodedText, TextCache, encode_texts
from seg2any.diffusion.prepare import CondTokens, EncodedLayout, assemble
from seg2any.segment.coloring.ranges import RANGES, as_pixels
from seg2any.segment.probe import encode_image
from seg2any.system.errors import UserError, shown

CONDITION, IMAGE = "condition", "image"
PLACES = (CONDITION, IMAGE)  # of the photo
# (x [B, I, D], s [B], condition) -> velocity [B, I, D]
Predict = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo and the words about its colours, both encoded.

    photo  latents [I, D]
    grid   (h, w) of its tokens
    text   of a legend's words, or of ""
    """

    photo: Tensor
    grid: Grid
    text: EncodedText


def painting_settings(given: ConditionSettings, place: str) -> ConditionSettings:
    """Return the settings for a photo in a place of PLACES: no regions, and no token dropped."""
    return replace(
        given,
        attention_mask_method="base",
        is_use_cond_token=place == CONDITION,
        is_filter_cond_token=False,
        cond_scale_factor=1,
        vae_posterior="mode",
    )


def predict_paintings(predict: Predict, scenes: Sequence[Scene], settings: ConditionSettings) -> Tensor:
    """Predict the latents [B, I, D] of the paintings of photos of one size.

    settings  as `painting_settings` returns them
    """
    condition = assemble([_as_layout(scene, settings.is_use_cond_token) for scene in scenes], settings)
    photos = torch.stack([scene.photo for scene in scenes])
    x = torch.zeros_like(photos) if settings.is_use_cond_token else photos
    return -predict(x, torch.ones(len(x)), condition)


def _as_layout(scene: Scene, is_condition: bool) -> EncodedLayout:
    cond = None
    if is_condition:
        everything = np.ones(scene.grid, bool)
        cond = CondTokens.of(everything, Posterior(scene.photo, torch.zeros_like(scene.photo)))
    return EncodedLayout(scene.text, np.zeros((0, *scene.grid), bool), cond=cond)


def check_painting(card: AdapterCard) -> AdapterCard:
    """Return the card of adapters that paint instances. Raises UserError for those that make images."""
    if not (card.photo or card.color_range):
        raise UserError("--lora_ckpt_path: these adapters make images and paint nothing; give those of task coloring")
    if card.photo not in PLACES or card.color_range not in RANGES:
        raise UserError(
            f"--lora_ckpt_path: their card has the photo {shown(card.photo)} and the range {shown(card.color_range)}, "
            "which this version does not know; install the version that trained them"
        )
    return card


class Painter:
    """A flow model with adapters that paint instances.

    card  as `check_painting` accepts it
    side  photos are brought to about side x side pixels; None: the side of training
    """

    def __init__(self, base: Base, card: AdapterCard, side: int | None = None, guidance_scale: float = 1.0):
        self.base, self.side, self.guidance_scale = base, side or card.resolution, guidance_scale
        self.settings = painting_settings(card.condition, card.photo)
        self.color_range, self.texts = card.color_range, TextCache(base)

    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        """Paint a photo uint8 [H, W, 3]: uint8 [h, w, 3], near its aspect.

        words  a legend's text; "" lets the model choose the colours
        """
        base, range_name = self.base, "fixed" if words else self.color_range
        latents, grid = encode_image(base, image, self.side)
        (text,) = encode_texts([base.caption_keys(words, (), self.settings)], base, self.texts)
        with torch.no_grad():
            found = predict_paintings(self._velocity, [Scene(latents[0].cpu(), grid, text)], self.settings)
            decoded = base.decode(found, grid)
        return as_pixels(RANGES[range_name](decoded.float()))

    def _velocity(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        device, dtype = self.base.device, self.base.dtype
        condition = condition.to(device, dtype)
        return self.base.velocity(x.to(device, dtype), s.to(device, dtype), condition, self.guidance_scale)
