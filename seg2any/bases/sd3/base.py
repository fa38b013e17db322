"""Implement the part of `Base` that the attention probe needs, with a StableDiffusion3Pipeline of diffusers.

Text is that of CLIP alone, [77 tokens of CLIP | 77 zero rows in place of T5's], as published for the probe.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from seg2any.attention.attend import Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition, Geometry, Posterior, Probing
from seg2any.bases.flux1.latents import encode_images, pixels_per_token
from seg2any.bases.packing import pack, unpack
from seg2any.bases.sd3.tapped import Blocks
from seg2any.bases.text import CaptionKeys, TextKey
from seg2any.system.errors import UserError

TEXT, POOLED = "sd3", "sd3_pooled"  # kinds of `TextKey`
PROBING = {24: Probing((9,), 1024, 77)}  # SD3-medium and SD3.5-medium, by the number of blocks, arXiv 2509.18096


class Sd3:
    """The probe's `Base` of a StableDiffusion3Pipeline; guidance, adapters and condition tokens are not its part."""

    def __init__(self, pipeline: StableDiffusion3Pipeline):
        self.pipeline = pipeline
        self.pipeline.text_encoder_3 = None  # T5 is not read: zero rows take its place

    @property
    def network(self) -> SD3Transformer2DModel:
        """Return the transformer."""
        return self.pipeline.transformer

    @property
    def tokenizer(self) -> object:
        """Return CLIP's tokenizer; both CLIPs have its vocabulary."""
        return self.pipeline.tokenizer

    @property
    def device(self) -> torch.device:
        """Return the device of the transformer."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the transformer."""
        return self.network.dtype

    @property
    def probing(self) -> Probing | None:
        """Return the block that follows regions, as published; None for other sizes."""
        return PROBING.get(self.network.config.num_layers)

    @property
    def geometry(self) -> Geometry:
        """Read the sizes from the configurations of VAE and transformer."""
        vae, sizes = self.pipeline.vae.config, self.network.config
        return Geometry(
            pixels_per_token=pixels_per_token(len(vae.block_out_channels)),
            channels=4 * vae.latent_channels,
            n_blocks=sizes.num_layers,
            n_heads=sizes.num_attention_heads,
            width=sizes.num_attention_heads * sizes.attention_head_dim,
            position_axes=0,
            text_width=sizes.joint_attention_dim,
            pooled_width=sizes.pooled_projection_dim,
            latent_scaling=(vae.shift_factor, vae.scaling_factor),
        )

    def caption_keys(self, caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> CaptionKeys:
        """Name the embeddings of a caption. Raises UserError for regional settings, which the probe never has."""
        if not settings.is_plain or caption is None:
            raise UserError("Stable Diffusion 3: only the probe reads it; give a caption and plain attention")
        length = self.pipeline.tokenizer_max_length
        return CaptionKeys(TextKey(caption, length, TEXT), (), TextKey(caption, 0, POOLED))

    @torch.no_grad()
    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]:
        """Encode captions with both CLIPs; see `Base`."""
        length = self.pipeline.tokenizer_max_length
        for caption in dict.fromkeys(key.caption for key in keys):
            texts, device = [caption] * 3, self.pipeline.text_encoder.device
            given = {"do_classifier_free_guidance": False, "max_sequence_length": length}
            embeds, _, pooled, _ = self.pipeline.encode_prompt(*texts, device, **given)
            found = {TEXT: embeds[0].cpu(), POOLED: pooled[0].cpu()}
            yield from ((key, found[key.kind]) for key in keys if key.caption == caption)

    def text_state(self, key: TextKey) -> Hashable:
        """Return what an embedding depends on besides its key; see `Base`."""
        encoders = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        return tuple((weakref.ref(encoder), encoder.dtype) for encoder in encoders)

    def encode_images(self, images: Tensor) -> Posterior:
        """Run the VAE's encoder; see `Base`."""
        return encode_images(images, self.pipeline.vae)

    def time_shift(self, schedule: Mapping[str, Any], n_tokens: int, n_steps: int) -> None:
        """Return None: SD3's schedule is the same for every size."""

    def velocity(
        self, x: Tensor, s: Tensor, condition: Condition, guidance: float | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Predict dx/ds [B, I, D] at x [B, I, D] and noise levels s [B]; see `Base`."""
        tokens = condition.tokens
        last = tokens.positions[0, tokens.n_text : tokens.n_text + tokens.n_image, 1:].amax(0).long() + 1
        with Blocks.of(self.network).tapped(tap, condition.plan):
            prediction = self.network(
                hidden_states=unpack(x, tuple(last.tolist())),
                timestep=s * 1000,
                encoder_hidden_states=condition.text,
                pooled_projections=condition.pooled,
                return_dict=False,
            )[0]
        return pack(prediction)
