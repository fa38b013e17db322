"""The frozen networks as the published code runs them in every training step: T5 and CLIP for each sample by itself,
whether or not its captions were read before, the VAE once for all images of a batch and once for all contour maps."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch

from seg2any.diffusion.prepare import CondTokens, as_image
from seg2any.training import batches
from seg2any.training.batches import Encoder, ReadSample
from seg2any.training.samples import EncodedSample, Latents, latents_of


class PublishedEncoder(Encoder):
    """For samples of one size that are read from their files, all with contours or all without."""

    def __call__(self, reads: Sequence[ReadSample]) -> list[EncodedSample]:
        latents = iter(self._latents(reads))
        with mock.patch.object(batches, "encode_latents", lambda *_: next(latents)):
            return [sample for read in reads for sample in super(PublishedEncoder, self).__call__([read])]

    def _latents(self, reads: Sequence[ReadSample]) -> list[Latents]:
        with_std = self.settings.vae_posterior == "sample"
        images = self.base.encode_images(torch.cat([as_image(read.pixels) for read in reads]))
        cond = [None] * len(reads)
        if reads[0].drawn.condition is not None:
            contours = self.base.encode_images(torch.cat([as_image(read.drawn.condition) for read in reads]))
            cond = [CondTokens.of(read.drawn.kept, contours[n]) for n, read in enumerate(reads)]
        return [latents_of(read.drawn, images[n], cond[n], with_std) for n, read in enumerate(reads)]
