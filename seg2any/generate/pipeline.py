"""Make images of layouts: encode captions and contours, join conditions, denoise, decode."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from seg2any.adapters.files import DEFAULT, switched_off
from seg2any.attention.settings import PLAIN, ConditionSettings, check_blocks
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.text import TextKey
from seg2any.diffusion.denoise import Sampling, Watcher, denoise
from seg2any.diffusion.guidance import TrueCFG, conditions_of
from seg2any.diffusion.noise import image_generators, initial_noise
from seg2any.diffusion.prepare import encode_layouts, image_size, size_in_tokens
from seg2any.generate import memory as memory_modes
from seg2any.generate.inputs import Given, read_layouts
from seg2any.generate.memory_modes import BITSANDBYTES
from seg2any.system.device import best_device, make_current
from seg2any.system.errors import UserError, shown

if TYPE_CHECKING:
    from seg2any.diffusion.step_cache import CacheConfig

Callback = Callable[["Seg2AnyPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Seg2AnyPipeline(Flux1Pipeline):
    """Generate images that follow masks and captions.

    >>> pipe = Seg2AnyPipeline.from_pretrained("examples/shapes/model")  # any FLUX folder, or a hub id
    >>> pipe.load_adapters("examples/shapes/lora")
    >>> images = pipe("five.json", num_inference_steps=20).images  # or a Layout, or a list of these

    Loading, saving, adapters and folding are `Flux1Pipeline`'s.
    """

    _callback_tensor_inputs = ["latents"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, memory="full", device=None, **kwargs):
        """Load a pipeline as diffusers does; without `dtype` in float32.

        memory  a mode of `seg2any.generate.memory_modes`
        device  to compute on; None: the best one present, but mode "full" leaves all on the CPU, as diffusers does. A
                GPU with a number, such as "cuda:1", becomes this process's current one
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        target = torch.device(device) if device is not None else best_device()
        memory_modes.check_mode(memory, target)
        make_current(target)
        if memory in BITSANDBYTES:
            dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
            kwargs["quantization_config"] = memory_modes.quantization_config(memory, dtype)
        if memory == "full" and device is not None and target.type == "cuda":
            # from the files onto the current GPU, without a copy of the model in host memory
            kwargs.setdefault("device_map", target.type)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if device is not None or memory != "full":
            memory_modes.place(pipe, memory, target)
        return pipe

    def compile(self) -> None:
        """Compile the transformer's blocks, once per kind of block and for all layouts.

        Token counts are symbolic, and attention, which depends on the layout, is not compiled.
        """
        self.transformer.compile_repeated_blocks(dynamic=True)

    @property
    def settings(self) -> ConditionSettings:
        """Settings of the loaded adapters, published ones where these have no card; plain FLUX without adapters."""
        if self.card is not None:
            return self.card.condition
        return ConditionSettings() if DEFAULT in getattr(self.transformer, "peft_config", ()) else PLAIN

    @torch.no_grad()
    def __call__(
        self,
        layouts: Given | Sequence[Given],
        *,
        prompt: str | Sequence[str] | None = None,
        settings: ConditionSettings | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 32,
        guidance_scale: float = 3.5,
        negative_prompt: str | None = None,
        true_cfg_scale: float = 1.0,
        cfg_in_one_pass: bool | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        known_texts: MutableMapping[TextKey, Tensor] | None = None,
        step_cache: str | CacheConfig = "none",
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Generate `num_images_per_prompt` images per layout: all of the first, then of the second.

        layouts          one, or several of one size, each a Layout or its file; what overlapping masks mean is said by
                         `Layout.overlap`
        prompt           global caption of all images, or a list of one per layout; default: the layouts' own
        settings         of the condition; default: `self.settings`. To change some:
                         `pipe.settings.override({"cond_scale_factor": 2})`
        height, width    of the images in pixels; default: the layouts'. Rounded down to whole tokens
        negative_prompt  caption of the image and of every region in the second prediction, used if true_cfg_scale > 1;
                         "" counts
        cfg_in_one_pass  both predictions as one batch of twice the size instead of two passes, same images; None: where
                         `seg2any.generate.memory.fits_doubled` says so
        seeds, generator sources of the noise, see `image_generators`; default: the layouts' seeds
        latents          initial noise [images, tokens, D], packed
        known_texts      text embeddings kept between calls, see `TextCache`
        step_cache       a name of `seg2any.diffusion.step_cache` or a configuration of diffusers; changes images
        output_type      "pil", "np" float [B, H, W, 3] in [0, 1], "pt" float [B, 3, H, W] in [0, 1], "latent" packed
        return_dict      False: return the tuple (images,)
        callback_on_step_end  f(pipe, step, timestep, {"latents": packed}), may return {"latents": others}
        callback_on_step_end_tensor_inputs  names of what the callback gets, there is "latents" only

        An image depends on its layout, seed and settings, not on the batch it is made in (up to rounding): its noise
        comes from its own CPU generator, first the initial latents, then the sample of the contour's VAE posterior.

        Raises UserError for layouts of different sizes, for settings that do not fit together, and for images that come
        out as NaN (but for "latent").
        """
        layouts = read_layouts(layouts, prompt)
        settings, base = settings or self.settings, self.base
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check(settings, output_type, callback_on_step_end_tensor_inputs)
        true_cfg = TrueCFG(negative_prompt, true_cfg_scale, cfg_in_one_pass)
        sampling = Sampling(num_inference_steps, guidance_scale, true_cfg_scale, step_cache)
        patch = base.geometry.pixels_per_token
        size = image_size(layouts, height, width, patch * settings.cond_scale_factor)
        grid = size_in_tokens(size, patch)
        generators = image_generators(layouts, num_images_per_prompt, seeds, generator)
        noise = initial_noise(grid, base.geometry.channels // 4, generators, latents)
        known_texts = {} if known_texts is None else known_texts

        encoded = encode_layouts(layouts, size, base, settings, known_texts)
        samples = [sample for sample in encoded for _ in range(num_images_per_prompt)]
        device = self._execution_device
        fits = functools.partial(memory_modes.fits_doubled, self.transformer, device=device)
        conditions = conditions_of(base, samples, settings, generators, true_cfg, known_texts, fits)
        dtype = base.dtype  # in training, text encoders on a CPU compute in fp32 beside a 16-bit transformer
        noise, conditions = noise.to(device, dtype), [condition.to(device, dtype) for condition in conditions]
        with _Steps(self, guidance_scale, callback_on_step_end, callback_on_step_end_tensor_inputs) as steps:
            images = denoise(base, self.scheduler, noise, conditions, sampling, steps)
        del conditions  # their masks would stay in memory beside the decoder
        if output_type != "latent":
            images = self.image_processor.postprocess(base.decode(images, grid), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check(self, settings: ConditionSettings, output_type: str, callback_inputs: Sequence[str]) -> None:
        check_blocks(settings, self.base.geometry.n_blocks)
        if not settings.is_plain and (off := switched_off(self.transformer)):
            warnings.warn(f"not active: {', '.join(off)}; name them, too, when you call set_adapters", stacklevel=4)
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")
        if not {*callback_inputs} <= {*self._callback_tensor_inputs}:
            raise UserError(
                f"callback_on_step_end_tensor_inputs is {shown(callback_inputs)}; choose from "
                f"{self._callback_tensor_inputs}"
            )


class _Steps(Watcher):
    """Keep the state that diffusers' callbacks read and may change, and move the progress bar."""

    def __init__(self, pipe: Seg2AnyPipeline, guidance_scale: float, callback: Callback | None, names: Sequence[str]):
        self.pipe, self.callback, self.names, self.progress = pipe, callback, names, None
        pipe._guidance_scale, pipe._interrupt = guidance_scale, False

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe._current_timestep = None
        if self.progress is not None:
            self.progress.close()

    @property
    def guidance_scale(self) -> float:
        return self.pipe.guidance_scale

    def begin(self, n_steps: int) -> None:
        self.pipe._num_timesteps = n_steps
        self.progress = self.pipe.progress_bar(total=n_steps)

    def goes_on(self, t: Tensor) -> bool:
        if not self.pipe.interrupt:
            self.pipe._current_timestep = t
        return not self.pipe.interrupt

    def after(self, step: int, t: Tensor, latents: Tensor) -> Tensor:
        if self.callback is not None:
            given = {"latents": latents} if "latents" in self.names else {}
            outputs = self.callback(self.pipe, step, t, given) or {}
            latents = outputs.get("latents", latents)
        self.progress.update()
        return latents
