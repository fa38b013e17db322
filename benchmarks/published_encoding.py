"""The frozen networks as the published code runs them in every training step: T5 and CLIP for each sample by itself,
whether or not its captions were read before, the VAE once for all images of a batch and once for all contour maps."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch

from seg2any.bases.flux1.latents import encode_images
from seg2any.diffusion.prepare import contour_image
from seg2any.training import batches
from seg2any.training.batches import Encoder, ReadSample
from seg2any.training.samples import EncodedSample, Latents, image_of, latents_of


class PublishedEncoder(Encoder):
    """For samples of one size that are read from their files, all with contours or all without."""

    def __call__(self, reads: Sequence[ReadSample]) -> list[EncodedSample]:
        latents = iter(self._latents(reads))
        with mock.patch.object(batches, "encode_latents", lambda *_: next(latents)):
            return [sample for read in reads for sample in super(PublishedEncoder, self).__call__([read])]

    def _latents(self, reads: Sequence[ReadSample]) -> list[Latents]:
        vae, with_std = self.encoders.vae, self.settings.vae_posterior == "sample"
        images = encode_images(torch.cat([image_of(read.pixels) for read in reads]), vae)
        contours = None
        if reads[0].drawn.condition is not None:
            contours = encode_images(torch.cat([contour_image(read.drawn) for read in reads]), vae)
        return [
            latents_of(read.drawn, images[n], None if contours is None else contours[n], with_std)
            for n, read in enumerate(reads)
        ]
