"""Implement `Base` with the modules of a FLUX.1 pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from seg2any.attention.attend import Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition, Encoders, Geometry, Grid, Posterior, Probing
from seg2any.bases.flux1 import latents, text
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.bases.text import CaptionKeys, TextKey
from seg2any.system.weights import module_samples, vocabulary

# Both by (double blocks, single blocks, width).
PROBING = {
    (19, 38, 3072): Probing((12, 17), 1024),  # FLUX.1-dev, arXiv 2509.18096
    (3, 5, 192): Probing((0,), 256, parting=(2,)),  # examples/shapes, by `seg2any segment --sweep` and docs/segment.md
}
# Measured by `python -m benchmarks.step_cache --calibrate`.
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
    """The `Base` of a FLUX.1 pipeline.

    Every method looks its parts up when called, so callers may move or remove parts of the pipeline.
    """

    def __init__(self, parts: Parts):
        self.parts = parts

    @property
    def network(self) -> Seg2AnyTransformer2DModel:
        """Return the transformer."""
        return self.parts.transformer

    @property
    def tokenizer(self) -> object:
        """Return the tokenizer of T5, the encoder that reads every caption."""
        return self.parts.tokenizer_2

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """Return CLIP and T5, unless they were released."""
        return tuple(part for part in (self.parts.text_encoder, self.parts.text_encoder_2) if part is not None)

    @property
    def device(self) -> torch.device:
        """Return the device of the transformer."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the transformer's frozen weights, unpacked if they are quantised."""
        return self.network.dtype

    @property
    def mag_ratios(self) -> Sequence[float] | None:
        """Return the ratios for the step cache `mag`, measured for FLUX.1 and for examples/shapes."""
        return MAG_RATIOS.get(self._shape)

    @property
    def probing(self) -> Probing | None:
        """Return the blocks that follow regions, published for FLUX.1-dev and measured for examples/shapes."""
        return PROBING.get(self._shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        sizes = self.network.config
        return sizes.num_layers, sizes.num_single_layers, sizes.num_attention_heads * sizes.attention_head_dim

    @property
    def keeps_cond_keys(self) -> bool:
        """Return False if processes share an image: each has only a part of the condition tokens."""
        return self.network.ulysses is None

    @property
    def geometry(self) -> Geometry:
        """Read the sizes from the configurations of VAE and transformer.

        Without a transformer the sizes of its blocks are 0: encoding needs no transformer.
        """
        vae = self.parts.vae.config
        of_image = {
            "pixels_per_token": latents.pixels_per_token(len(vae.block_out_channels)),
            "channels": 4 * vae.latent_channels,
            "latent_scaling": (vae.shift_factor, vae.scaling_factor),
        }
        if self.network is None:
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
        """Return the names of the Linear layers of the adapters `default` and `cond`."""
        return self.network.adapter_layers

    def caption_keys(self, caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> CaptionKeys:
        """Name the embeddings of T5 and CLIP that a sample needs; see `Base`."""
        return text.caption_keys_of(caption, regions, settings)

    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]:
        """Encode captions with T5 and CLIP; see `Base`."""
        return text.encode_keys(keys, self.parts)

    def text_state(self, key: TextKey) -> Hashable:
        """Return what an embedding depends on besides its key; see `Base`."""
        return text.encoder_state(key, self.parts)

    def identity(self, of: Encoders) -> Iterator[bytes]:
        """Yield vocabularies and weight samples of T5 and CLIP, or of the VAE; see `Base`."""
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

    def decode_with_gradients(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Run the VAE's decoder for a loss on pixels; see `Base`."""
        return latents.decode_with_gradients(tokens, grid, self.parts.vae)

    def time_shift(self, schedule: Mapping[str, Any], n_tokens: int, n_steps: int) -> float:
        """Interpolate mu linearly in the number of image tokens; see `Base`."""
        return calculate_shift(
            n_tokens,
            schedule.get("base_image_seq_len", 256),
            schedule.get("max_image_seq_len", 4096),
            schedule.get("base_shift", 0.5),
            schedule.get("max_shift", 1.15),
        )

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
    """Predict dx/ds [B, I, D] at x [B, I, D] by one forward pass of the transformer.

    s  noise levels [B] in [0, 1]
    """
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
