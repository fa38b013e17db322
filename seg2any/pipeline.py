"""Layouts in, images out: encode, assemble a `Condition`, denoise, decode.

The loop is our own and not stock FluxPipeline's: with true CFG the two passes of a step have different text lengths,
hence different conditions, and the stock loop hands both passes the same one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from types import NoneType

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from torch import Tensor

from seg2any import memory as memory_modes
from seg2any.condition import Condition
from seg2any.errors import UserError
from seg2any.latents import decode_latents, pixels_per_token
from seg2any.layout import Layout
from seg2any.models import adapters
from seg2any.models.card import AdapterCard
from seg2any.models.cond_cache import ConditionCache
from seg2any.models.foldable import Foldable
from seg2any.models.transformer import Seg2AnyTransformer2DModel
from seg2any.noise import image_generators, packed_noise
from seg2any.prepare import EncodedLayout, assemble, encode_layouts, image_size, prompt_for, size_in_tokens
from seg2any.settings import ConditionSettings, settings_of
from seg2any.step_cache import CacheConfig, step_cache
from seg2any.text import TextKey, encode_texts

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Callback = Callable[[FluxPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Sampling:
    """How a batch is denoised, once its conditions are known."""

    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float = 1.0
    step_cache: str | CacheConfig = "none"
    callback_on_step_end: Callback | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_inference_steps, int) or self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {self.num_inference_steps!r}; give a whole number of at least 1")
        for name in ("guidance_scale", "true_cfg_scale"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; give a finite number")


class Seg2AnyPipeline(Foldable, FluxPipeline):
    """FLUX that obeys masks and captions.

    >>> pipe = Seg2AnyPipeline.from_pretrained("examples/shapes/model")  # any FLUX folder, or a hub id
    >>> pipe.load_adapters("examples/shapes/lora")
    >>> images = pipe([Layout.read("five.json")], num_inference_steps=20).images

    Loading, saving, offloading, step caches and further LoRAs with their weights are FluxPipeline's own. IP-Adapters
    cannot be used: they replace the attention, and with it the regions.
    """

    _callback_tensor_inputs = ["latents"]

    @functools.wraps(FluxPipeline.__init__)  # from_pretrained reads which parts there are from the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.transformer is not None:
            Seg2AnyTransformer2DModel.adopt(self.transformer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, memory="full", device=None, **kwargs):
        """As in diffusers. Without `dtype` all parts are float32: transformers alone keeps the precision of files.

        memory  a mode of `seg2any.memory`
        device  to compute on; None: the best one present, but mode "full" leaves all on the CPU, as diffusers does
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        target = torch.device(device) if device is not None else memory_modes.best_device()
        memory_modes.check_mode(memory, target)
        if memory in ("int8", "nf4"):
            dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
            kwargs["quantization_config"] = memory_modes.quantization_config(memory, dtype)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if device is not None or memory != "full":
            memory_modes.place(pipe, memory, target)
        return pipe

    def load_adapters(self, path: str) -> None:
        """Load <path>/default and <path>/cond, the published layout; their card sets the defaults of `__call__`.

        Raises UserError for missing or broken files, and for adapters of another model.
        """
        self.card = adapters.load_adapters(self.transformer, path, self.transformer.dtype)
        memory_modes.refresh_hooks(self.transformer)

    def compile(self) -> None:
        """Compile the transformer's blocks, once for each kind and not again for other layouts: token counts are
        symbols, and attention, which knows the layout, stays outside."""
        self.transformer.compile_repeated_blocks(dynamic=True)

    def load_lora_weights(self, *args, **kwargs) -> None:
        """A further LoRA beside ours, as in diffusers. Raises UserError in memory mode fp8."""
        memory_modes.refuse_further_loras(self.transformer)
        super().load_lora_weights(*args, **kwargs)
        memory_modes.refresh_hooks(self.transformer)

    def save_adapters(self, path: str, card: AdapterCard | None = None) -> None:
        """Write what `load_adapters` reads. `card` says what they were trained with; None: as they were loaded."""
        card = card or self.card
        if card is None:
            raise UserError(f"{path}: adapters that were not loaded have no card; give save_adapters one")
        adapters.save_adapters(self.transformer, path, card)

    @torch.no_grad()
    def __call__(
        self,
        layouts: Layout | Sequence[Layout],
        *,
        negative_prompt: str | None = None,
        true_cfg_scale: float = 1.0,
        cfg_in_one_pass: bool | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 32,
        guidance_scale: float = 3.5,
        num_images_per_prompt: int = 1,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        attention_mask_method: str | None = None,
        hard_attn_block_range: tuple[int, int] | None = None,
        cond2image_attention_weight: float | None = None,
        is_use_cond_token: bool | None = None,
        is_filter_cond_token: bool | None = None,
        cond_scale_factor: int | None = None,
        region_assignment: str | None = None,
        max_sequence_length: int | None = None,
        regional_max_sequence_length: int | None = None,
        settings: ConditionSettings | None = None,
        known_texts: MutableMapping[TextKey, Tensor] | None = None,
        step_cache: str | CacheConfig = "none",
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> FluxPipelineOutput:
        """Generate `num_images_per_prompt` images for each layout, in order: all of the first layout, then the second.

        Every setting that is None is that of `settings`, which are by default those that the loaded adapters were
        trained with, else the published ones; see `ConditionSettings` and `AttentionRules` for what they mean.

        layouts          one, or several of one size
        negative_prompt  with true_cfg_scale > 1: of the whole image and of every region, also "" is one
        height, width    of the images; default: the layouts'. Rounded down to whole tokens
        seeds, generator where the noise comes from, see `image_generators`; default: the layouts' seeds
        latents          initial noise [images, tokens, 4C], packed
        cfg_in_one_pass  true CFG as one batch of twice the size instead of two passes, same images; None: where
                         `seg2any.memory.fits_doubled` says so
        known_texts      text embeddings kept between calls, see `TextCache`
        step_cache       a name of `seg2any.step_cache` or a configuration of diffusers: faster, not quite the same
        output_type      "pil", "np" float [B, H, W, 3] in [0, 1], "pt" float [B, 3, H, W] in [0, 1], "latent" packed
        callback_on_step_end  f(pipe, step, timestep, {"latents": packed}), may return {"latents": others}

        An image depends on its layout, seed and settings, not on the batch it is made in (up to rounding): its noise
        comes from its own CPU generator, first the initial latents, then the sample of the contour's VAE posterior.

        Raises UserError for layouts of different sizes and for settings that do not fit together.
        """
        layouts = [layouts] if isinstance(layouts, (Layout, str, os.PathLike)) else list(layouts)
        settings = (settings or self.settings).override(
            {
                "method": attention_mask_method,
                "hard_attn_block_range": hard_attn_block_range,
                "cond2image_attention_weight": cond2image_attention_weight,
                "is_use_cond_token": is_use_cond_token,
                "is_filter_cond_token": is_filter_cond_token,
                "cond_scale_factor": cond_scale_factor,
                "region_assignment": region_assignment,
                "max_sequence_length": max_sequence_length,
                "regional_max_sequence_length": regional_max_sequence_length,
            },
        )
        if true_cfg_scale > 1 and negative_prompt is None:
            warnings.warn("true_cfg_scale does nothing without negative_prompt; give one, it may be ''", stacklevel=2)
            true_cfg_scale = 1.0
        if not isinstance(negative_prompt, (str, NoneType)):
            raise UserError("negative_prompt is one string, for all images of a call; call once per negative prompt")
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")
        sampling = Sampling(num_inference_steps, guidance_scale, true_cfg_scale, step_cache, callback_on_step_end)
        self.check_blocks(settings)
        size = image_size(layouts, height, width, pixels_per_token(self.vae) * settings.cond_scale_factor)
        grid = size_in_tokens(size, self.vae)
        generators = image_generators(layouts, num_images_per_prompt, seeds, generator)
        known_texts = {} if known_texts is None else known_texts

        samples = _repeat(encode_layouts(layouts, size, self, settings, known_texts), num_images_per_prompt)
        noise = self._initial_noise(latents, grid, generators)
        opposed = None
        if sampling.true_cfg_scale > 1:
            opposed = self._say_to_all(negative_prompt, samples, settings, known_texts)
        conditions = self._conditions(samples, opposed, settings, generators, cfg_in_one_pass)
        tokens = self._denoise(noise, conditions, sampling)
        images = tokens
        if output_type != "latent":
            images = self.image_processor.postprocess(decode_latents(tokens, grid, self.vae), output_type=output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=images)

    @property
    def settings(self) -> ConditionSettings:
        """What the loaded adapters were trained with; the published settings without adapters or without a card."""
        return ConditionSettings() if self.card is None else settings_of(self.card)

    def check_blocks(self, settings: ConditionSettings) -> None:
        """Warn if the settings name blocks that the transformer does not have."""
        first, last = settings.rules.hard_attn_block_range
        n_blocks = len(self.transformer.transformer_blocks) + len(self.transformer.single_transformer_blocks)
        if settings.rules.method == "hard" and last >= n_blocks:
            warnings.warn(
                f"hard_attn_block_range {first} {last} reaches past the {n_blocks} blocks of this transformer "
                f"(0 to {n_blocks - 1}); attribute isolation acts in {max(n_blocks - first, 0)} of them",
                stacklevel=3,
            )

    def _say_to_all(
        self,
        text: str,
        encoded: Sequence[EncodedLayout],
        settings: ConditionSettings,
        known: MutableMapping[TextKey, Tensor],
    ) -> list[EncodedLayout]:
        """The same samples with `text` as global caption, also of those that have none, and as every region's."""
        prompts = [prompt_for(text, [text] * len(sample.masks), settings) for sample in encoded]
        texts = encode_texts(prompts, self, known)
        return [dataclasses.replace(sample, text=text) for sample, text in zip(encoded, texts, strict=True)]

    def _initial_noise(
        self, given: Tensor | None, grid: tuple[int, int], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """[images, tokens, 4C] in fp32 on the CPU, one generator per image unless `given`."""
        channels = self.transformer.config.in_channels // 4
        if given is None:
            return torch.cat([packed_noise(grid, channels, generator) for generator in generators])
        shape = (len(generators), grid[0] * grid[1], 4 * channels)
        if tuple(given.shape) != shape:
            raise UserError(
                f"latents are {list(given.shape)}; these images need {list(shape)} (images, tokens, channels)"
            )
        return given

    def _conditions(
        self,
        samples: Sequence[EncodedLayout],
        opposed: Sequence[EncodedLayout] | None,
        settings: ConditionSettings,
        generators: Sequence[torch.Generator],
        in_one_pass: bool | None,
    ) -> list[Condition]:
        """One per pass of a step: of the samples; with true CFG of the opposed as well, or of both in one batch."""
        if opposed is None:
            return [assemble(samples, settings, generators)]
        copies = {generator: generator.clone_state() for generator in generators}
        again = [copies[generator] for generator in generators]  # the same sample of the contour for both
        if in_one_pass is None:
            n_tokens = max(sample.n_tokens for sample in [*samples, *opposed])
            in_one_pass = memory_modes.fits_doubled(self.transformer, len(samples), n_tokens, self._execution_device)
        if in_one_pass:
            return [assemble([*samples, *opposed], settings, [*generators, *again])]
        return [assemble(samples, settings, generators), assemble(opposed, settings, again)]

    def _denoise(self, noise: Tensor, conditions: Sequence[Condition], sampling: Sampling) -> Tensor:
        """Integrate the flow from noise [B, I, 4C] to image latents of that shape, in the dtype of the embeddings."""
        device, dtype = self._execution_device, conditions[0].prompt_embeds.dtype
        latents, conditions = noise.to(device, dtype), [condition.to(device, dtype) for condition in conditions]
        timesteps = self._timesteps(latents.shape[1], sampling.num_inference_steps, device)
        self._guidance_scale, self._num_timesteps, self._interrupt = sampling.guidance_scale, len(timesteps), False
        cond_cache = ConditionCache(self.transformer)
        with (
            self.progress_bar(total=len(timesteps)) as progress,
            step_cache(self.transformer, sampling.step_cache, len(timesteps)),
        ):
            for step, t in enumerate(timesteps):
                if self.interrupt:
                    break
                self._current_timestep = t
                known = [cond_cache.of(condition, self.guidance_scale) for condition in conditions]
                velocity = self._steered_velocity(latents, t, known, sampling.true_cfg_scale)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
                if sampling.callback_on_step_end is not None:
                    outputs = sampling.callback_on_step_end(self, step, t, {"latents": latents}) or {}
                    latents = outputs.get("latents", latents)
                progress.update()
        self._current_timestep = None
        return latents

    def _timesteps(self, n_tokens: int, num_inference_steps: int, device: torch.device) -> Tensor:
        """FLUX's schedule: equal steps, shifted by the number of image tokens."""
        config = self.scheduler.config
        mu = calculate_shift(
            n_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        sigmas = None if config.get("use_flow_sigmas") else even
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, sigmas=sigmas, mu=mu)
        self.scheduler.set_begin_index(0)
        return timesteps

    def _steered_velocity(
        self, latents: Tensor, t: Tensor, conditions: Sequence[Condition], true_cfg_scale: float
    ) -> Tensor:
        """dx/ds with true CFG if there are two conditions, or one for twice the images: theirs and the opposed."""
        copies = torch.cat([latents] * (conditions[0].tokens.batch_size // len(latents)))
        names = ("cond", "uncond")[: len(conditions)]
        passes = [self._velocity(name, copies, t, given) for name, given in zip(names, conditions, strict=True)]
        velocities = torch.cat(passes).split(len(latents))
        if len(velocities) == 1:
            return velocities[0]
        wanted, away = velocities
        return away + true_cfg_scale * (wanted - away)

    def _velocity(self, name: str, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """dx/ds at time `t` (0 to 1000), [B, I, 4C]. `name` tells step caches the two passes of true CFG apart."""
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full([len(latents)], self.guidance_scale, device=latents.device)
        with self.transformer.cache_context(name):
            return self.transformer(
                hidden_states=latents,
                timestep=t.expand(len(latents)).to(latents.dtype) / 1000,
                guidance=guidance,
                encoder_hidden_states=condition.prompt_embeds,
                pooled_projections=condition.pooled_prompt_embeds,
                joint_attention_kwargs={"condition": condition},
                return_dict=False,
            )[0]


def _repeat(samples: Sequence[EncodedLayout], times: int) -> list[EncodedLayout]:
    return [sample for sample in samples for _ in range(times)]
