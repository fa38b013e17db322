"""FLUX.1 as a `Base`: a pipeline's modules behind the protocol that everything above speaks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from diffusers import AutoencoderKL
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from torch import Tensor

from seg2any.attention.attend import Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition, Encoders, Geometry, Grid, Posterior
from seg2any.bases.flux1 import latents, text
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.bases.text import Prompt, TextKey
from seg2any.system.weights import module_samples, vocabulary

# By (double blocks, single blocks, width). Measured by `python -m benchmarks.step_cache --calibrate`.
MAG_RATIOS = {
    (19, 38, 3072): tuple(FLUX_MAG_RATIOS.tolist()),  # FLUX.1, from diffusers
    (3, 5, 192): (  # examples/shapes
        *(1.0, 1.0213, 0.9531, 0.9742, 0.9833, 0.9873, 0.9827, 0.976, 0.9721, 0.9717),
        *(0.968, 0.962, 0.9641, 0.9576, 0.9528, 0.9472, 0.9414, 0.9372, 0.9353, 0.971),
    ),
}


class Parts(text.TextEncoders, Protocol):
    """A FLUX.1 pipeline, or anything with the same six attributes."""

    transformer: Seg2AnyTransformer2DModel
    vae: AutoencoderKL


class Flux1:
    """The `Base` of a FLUX.1 pipeline. It reads the parts when it needs them, so they may be moved or removed."""

    def __init__(self, parts: Parts):
        self.parts = parts

    @property
    def network(self) -> Seg2AnyTransformer2DModel:
        """The transformer."""
        return self.parts.transformer

    @property
    def tokenizer(self) -> object:
        """The tokenizer of T5, which reads every caption."""
        return self.parts.tokenizer_2

    @property
    def device(self) -> torch.device:
        """The device of the transformer."""
        return self.network.device

    @property
    def mag_ratios(self) -> Sequence[float] | None:
        """The measured ratios for the step cache `mag`; None for other models than FLUX.1 and the embedded one."""
        sizes = self.network.config
        width = sizes.num_attention_heads * sizes.attention_head_dim
        return MAG_RATIOS.get((sizes.num_layers, sizes.num_single_layers, width))

    @property
    def keeps_cond_keys(self) -> bool:
        """False while several processes make an image together: each has only a part of the condition tokens."""
        return self.network.ulysses is None

    @property
    def geometry(self) -> Geometry:
        """Sizes, from the configurations of VAE and transformer; without a transformer those of its blocks are 0."""
        vae = self.parts.vae.config
        of_image = {
            "pixels_per_token": latents.pixels_per_token(len(vae.block_out_channels)),
            "channels": 4 * vae.latent_channels,
            "latent_scaling": (vae.shift_factor, vae.scaling_factor),
        }
        if self.network is None:  # encoding needs none
            return Geometry(**of_image, n_blocks=0, n_heads=0, width=0, position_axes=0, text_width=0, pooled_width=0)
        sizes = self.network.config
        return Geometry(
            **of_image,
            n_blocks=sizes.num_layers + sizes.num_single_layers,
            n_heads=sizes.num_attention_heads,
            width=sizes.num_attention_heads * sizes.attention_head_dim,
            position_axes=len(sizes.axes_dims_rope),
            text_width=sizes.joint_attention_dim,
            pooled_width=sizes.pooled_projection_dim,
        )

    @property
    def adapter_layers(self) -> Mapping[str, Sequence[str]]:
        """Names of the Linear layers of `default` and `cond`."""
        return self.network.adapter_layers

    def prompt(self, caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> Prompt:
        """Name the embeddings of T5 and CLIP that captions need."""
        return text.prompt_of(caption, regions, settings)

    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]:
        """Run T5 and CLIP; see `Base`."""
        return text.encode_keys(keys, self.parts)

    def text_state(self, key: TextKey) -> Hashable:
        """Return what an embedding depends on besides its key; see `Base`."""
        return text.encoder_state(key, self.parts)

    def identity(self, of: Encoders) -> Iterator[bytes]:
        """Yield the vocabularies and samples of T5 and CLIP, or samples of the VAE; see `Base`."""
        if of == "text":
            for tokenizer in (self.parts.tokenizer, self.parts.tokenizer_2):
                yield repr(vocabulary(tokenizer)).encode()
        networks = (self.parts.vae,) if of == "images" else (self.parts.text_encoder, self.parts.text_encoder_2)
        for network in networks:
            yield from module_samples(network)

    def release_text_encoders(self, but_pooled: bool = False) -> None:
        """Free T5, and CLIP unless pooled vectors are still needed; see `Base`."""
        self.parts.text_encoder_2 = None
        if not but_pooled:
            self.parts.text_encoder = None

    def release_image_encoder(self) -> None:
        """Move the VAE to the CPU; see `Base`."""
        self.parts.vae.to("cpu")

    def encode_images(self, images: Tensor) -> Posterior:
        """Run the VAE's encoder; see `Base`."""
        return latents.encode_images(images, self.parts.vae)

    def decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Run the VAE's decoder; see `Base`."""
        return latents.decode_latents(tokens, grid, self.parts.vae)

    def velocity(
        self, x: Tensor, s: Tensor, condition: Condition, guidance: float | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Run the transformer, on several GPUs where `enable_parallelism` was called; see `Base`."""
        return velocity(self.network, x, s, condition, guidance, tap)


def velocity(
    transformer: Seg2AnyTransformer2DModel,
    x: Tensor,
    s: Tensor,
    condition: Condition,
    guidance: float | None = None,
    tap: Tap | None = None,
) -> Tensor:
    """Predict dx/ds [B, I, D] at x [B, I, D] and noise levels s [B] in [0, 1]: one forward pass of the transformer."""
    several = transformer.ulysses
    if several is not None:
        several.check(transformer, x, condition, tap)
        x, condition = several.share(x, condition)
    scale = None
    if transformer.config.guidance_embeds:
        scale = torch.full([len(x)], 1.0 if guidance is None else guidance, device=x.device)
    prediction = transformer(
        hidden_states=x,
        timestep=s,
        guidance=scale,
        encoder_hidden_states=condition.text,
        pooled_projections=condition.pooled,
        joint_attention_kwargs={"condition": condition, "tap": tap},
        return_dict=False,
    )[0]
    return prediction if several is None else several.gather(prediction)
