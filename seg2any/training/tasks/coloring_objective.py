"""Compute the loss of painted photos: that of gen2seg on pixels, or the distance to a painting in latents.

photo (and words) --> one prediction x0 --> decoded --> colours --> loss of instances
                                    \\-----------------------------> distance to the latents of a painting
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base
from seg2any.bases.text import TextCache, encode_texts
from seg2any.diffusion.prepare import as_image
from seg2any.segment.coloring.painter import Predict, Scene, predict_paintings
from seg2any.segment.coloring.ranges import RANGES, as_pixels, fixed_range
from seg2any.training.coloring_loss import coloring_loss
from seg2any.training.config import Coloring
from seg2any.training.painting import Photo, Wish, random_numbers, wish_in_words, wish_without_words


@dataclass(eq=False)
class Objective:
    """The loss of the config's section `coloring`.

    settings         as `painting_settings` returns them
    partly_labelled  whether pixels of the background may belong to instances that nobody labelled
    """

    base: Base
    options: Coloring
    settings: ConditionSettings
    partly_labelled: bool
    texts: TextCache = field(init=False)
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # latents of paintings, by photo and words

    def __post_init__(self) -> None:
        self.texts = TextCache(self.base)

    def __call__(self, predict: Predict, photos: Sequence[Photo], generators: Sequence[torch.Generator]) -> Tensor:
        """Return the mean loss of photos of one size; each draws its words from its own generator."""
        wishes = [self._wish(photo, generator) for photo, generator in zip(photos, generators, strict=True)]
        found = self.predict(predict, photos, wishes)
        if self.options.loss == "paintings":
            targets = torch.stack([self._latents(p, w) for p, w in zip(photos, wishes, strict=True)])
            return F.mse_loss(found, targets.to(found.device))
        return self._on_pixels(found, photos, wishes)

    def predict(self, predict: Predict, photos: Sequence[Photo], wishes: Sequence[Wish]) -> Tensor:
        """Predict the latents [B, I, D] of the paintings."""
        keys = [self.base.caption_keys(wish.words, (), self.settings) for wish in wishes]
        texts = encode_texts(keys, self.base, self.texts)
        scenes = [Scene(photo.latents, photo.grid, text) for photo, text in zip(photos, texts, strict=True)]
        return predict_paintings(predict, scenes, self.settings)

    @torch.no_grad()
    def painted(self, predict: Predict, photo: Photo, wish: Wish | None = None) -> np.ndarray:
        """Paint a photo, without words unless a wish has some: uint8 [H, W, 3]."""
        wish = wish or wish_without_words(photo.read)
        name = "fixed" if wish.words or self.options.loss == "paintings" else self.options.color_range
        decoded = self.base.decode(self.predict(predict, [photo], [wish]), photo.grid).float()
        return as_pixels(RANGES[name](decoded))

    def _wish(self, photo: Photo, generator: torch.Generator) -> Wish:
        share, number = torch.rand(2, generator=generator).tolist()
        if share >= self.options.legend_share:
            return wish_without_words(photo.read)
        if not self.options.legends_per_photo:
            return wish_in_words(photo.read, self.options.legend_entries, random_numbers(generator))
        one = int(number * self.options.legends_per_photo)
        numbers = random_numbers(generator, (photo.read.index * self.options.legends_per_photo + one) % 2**31)
        return wish_in_words(photo.read, self.options.legend_entries, numbers)

    def _latents(self, photo: Photo, wish: Wish) -> Tensor:
        """Encode the painting that a wish asks for; it is kept if the photo's wishes are few."""
        key = (photo.read.key, wish.words)
        if key not in self.kept:
            latents = self.base.encode_images(as_image(wish.picture)).mean[0].cpu()
            if wish.words and not self.options.legends_per_photo:
                return latents.float()
            self.kept[key] = latents.to(torch.float16)
        return self.kept[key].float()

    def _on_pixels(self, found: Tensor, photos: Sequence[Photo], wishes: Sequence[Wish]) -> Tensor:
        """Decode, and compare: without words with the instances, with words with the painting."""
        losses = []
        for latents, photo, wish in zip(found, photos, wishes, strict=True):  # one by one, to bound memory
            decoded = self.base.decode_with_gradients(latents[None], photo.grid).float()
            if wish.words:
                target = torch.from_numpy(wish.picture.astype(np.float32)).permute(2, 0, 1)[None].to(decoded.device)
                losses.append(F.huber_loss(fixed_range(decoded), target))
                continue
            colors = RANGES[self.options.color_range](decoded)
            instances = torch.from_numpy(photo.read.instances)[None].to(decoded.device)
            losses.append(coloring_loss(colors, instances, [self.partly_labelled]))
        return torch.stack(losses).mean()
