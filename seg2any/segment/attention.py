"""Seg4Diff (arXiv 2509.18096) as a segmenter: regions where image tokens attend to the tokens of a phrase.

    phrases     a mask each, where the phrase's map, scaled to 0..1, is above a threshold; masks may overlap
    categories  every pixel gets the name whose map is greatest there
    nothing     maps of the tokens of an empty prompt, merged where they are alike

A background phrase joins the phrases or categories; pixels where its map is greatest are in no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from seg2any.attention.settings import PLAIN
from seg2any.bases.base import Base, Grid
from seg2any.bases.text import EncodedText, TextCache, encode_texts
from seg2any.layout import Layout
from seg2any.segment.attention_maps import class_maps, min_max
from seg2any.segment.mask_head import MaskHead, check_head
from seg2any.segment.merge import THRESHOLD, merged
from seg2any.segment.phrases import chunks_of
from seg2any.segment.probe import (
    MaskReader,
    ProbeSettings,
    check_probe,
    comparable,
    encode_image,
    probe,
    probe_masks,
    published_level,
)
from seg2any.segment.regions import above_threshold, by_greatest, is_flat
from seg2any.segment.segmenter import Prompt

METHOD = "attention"


@dataclass(frozen=True)
class Choices:
    """Settings that turn maps into regions.

    background  a phrase for what is no region; None: without one
    threshold   of a phrase's map, which is scaled to 0..1
    merging     divergence below which maps without a name are merged
    """

    background: str | None = None
    threshold: float = 0.5
    merging: float = THRESHOLD


class AttentionSegmenter:
    """A flow model that finds regions by its own attention, without any training.

    Masks have the size of the image. `scores` compare the mean of a region's map inside and outside: in / (in + out),
    so 0.5 says nothing and 1 is sure.

    head  a CNN that was trained to read the maps of names; without names the maps are read as they are
    """

    def __init__(
        self,
        base: Base,
        scheduler: FlowMatchEulerDiscreteScheduler,
        settings: ProbeSettings,
        choices: Choices | None = None,
        head: MaskHead | None = None,
    ):
        check_probe(settings, base)
        check_head(head, len(settings.blocks), base.geometry.n_heads)
        self.base, self.scheduler, self.settings, self.head = base, scheduler, settings, head
        self.choices, self.texts = choices or Choices(), TextCache(base)

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the regions of a prompt in an image uint8 [H, W, 3]; a flat photo gives regions without a pixel.

        Raises UserError for points, boxes and masks, and for a phrase that the text encoder cannot read whole.
        """
        prompt.check(METHOD, ("phrases",), ("categories",), ())
        names = prompt.phrases or prompt.categories or ()
        if is_flat(image):
            masks, scores = np.zeros((len(names), *image.shape[:2]), dtype=bool), np.zeros(len(names), np.float32)
            return replace(self._layout(masks, names, scores), notes=("the photo has one colour",))
        if not prompt.given:
            return self._unsupervised(image)
        background = [one for one in (self.choices.background,) if one is not None]
        maps = self.maps(image, [*names, *background])
        own, rest, size = maps[: len(names)], maps[len(names) :], image.shape[:2]
        if prompt.phrases:
            masks, scores = above_threshold(own, rest, self.choices.threshold, size)
        else:
            masks, scores = by_greatest(own, rest, size)
        return self._layout(masks, names, scores)

    def maps(self, image: np.ndarray, phrases: Sequence[str]) -> Tensor:
        """Return the map of each phrase on the token grid, averaged over blocks: float32 [N, h, w]."""
        if self.head is None:
            return self.maps_of_blocks(image, phrases).mean(0)
        chunks = chunks_of(phrases, self.base.tokenizer, self.settings.text_tokens)
        x0, grid, level = self._encoded_image(image)
        texts, reader = self._encoded([chunk.prompt for chunk in chunks]), MaskReader(self.head, self.settings)
        maps = torch.empty(len(phrases), *grid)
        for chunk, text in zip(chunks, texts, strict=True):
            maps[list(chunk.phrases)] = probe_masks(self.base, x0, grid, (text, chunk.columns), level, reader).cpu()
        return maps

    def maps_of_blocks(self, image: np.ndarray, phrases: Sequence[str]) -> Tensor:
        """Return the map of each phrase in each block: float32 [blocks, N, h, w]."""
        chunks = chunks_of(phrases, self.base.tokenizer, self.settings.text_tokens)
        weights, grid = self._weights(image, [chunk.prompt for chunk in chunks])
        maps = torch.empty(len(self.settings.blocks), len(phrases), *grid)
        for chunk, of_chunk in zip(chunks, comparable(weights), strict=True):
            for of_block, one in zip(maps, of_chunk, strict=True):
                of_block[list(chunk.phrases)] = class_maps(one[None], chunk.columns, grid).cpu()
        return maps

    def _weights(self, image: np.ndarray, prompts: Sequence[str]) -> tuple[list[Tensor], Grid]:
        """Return the weights [blocks, I, T] for each prompt, and the token grid."""
        x0, grid, level = self._encoded_image(image)
        texts = self._encoded(prompts)
        return [probe(self.base, x0, grid, text, level, self.settings) for text in texts], grid

    def _encoded_image(self, image: np.ndarray) -> tuple[Tensor, Grid, float]:
        """Return the latents [1, I, D], the token grid and the noise level."""
        x0, grid = encode_image(self.base, image, self.settings.side)
        level = self.settings.noise_level
        return x0, grid, published_level(self.base, self.scheduler, grid[0] * grid[1]) if level is None else level

    def _encoded(self, prompts: Sequence[str]) -> list[EncodedText]:
        plain = PLAIN.override({"max_sequence_length": self.settings.text_tokens})
        return encode_texts([self.base.caption_keys(one, (), plain) for one in prompts], self.base, self.texts)

    def _unsupervised(self, image: np.ndarray) -> Layout:
        """Merge the maps of the tokens of an empty prompt, as published; a region is where a merged map is greatest."""
        (weights,), grid = self._weights(image, [""])
        read = self.base.probing.tokens if self.base.probing else None
        of_token = min_max(weights.mean(0)[:, :read], 1)  # over the tokens of each position, as the published code does
        maps = merged(of_token.T.unflatten(1, grid), self.choices.merging).cpu()
        masks, scores = by_greatest(maps, maps[:0], image.shape[:2])
        found = masks.any((1, 2))
        return self._layout(masks[found], [f"region {n}" for n in range(1, found.sum() + 1)], scores[found])

    def _layout(self, masks: np.ndarray, captions: Sequence[str], scores: np.ndarray) -> Layout:
        source = f"attention of blocks {' '.join(map(str, self.settings.blocks))}"
        source += "" if self.head is None else ", read by a trained CNN"
        notes = () if masks.any() else ("no map stands out",)
        return Layout(masks, tuple(captions), scores=scores, source=source, overlap="share", notes=notes)
