"""From noise to image latents: FLUX's schedule of times, and one Euler step for each.

The loop is our own and not stock FluxPipeline's, which hands both predictions of true CFG the same condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from seg2any.bases.base import Condition
from seg2any.diffusion.cond_cache import ConditionCache
from seg2any.diffusion.guidance import steered
from seg2any.diffusion.step_cache import step_cache
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.diffusion.step_cache import CacheConfig

Callback = Callable[[FluxPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Sampling:
    """How a batch is denoised, once its conditions are known. See `Seg2AnyPipeline.__call__`."""

    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float = 1.0
    step_cache: str | CacheConfig = "none"
    callback_on_step_end: Callback | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_inference_steps, int) or self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {self.num_inference_steps!r}; give a whole number of at least 1")
        if not (isinstance(self.guidance_scale, Real) and math.isfinite(self.guidance_scale)):
            raise UserError(f"guidance_scale is {self.guidance_scale!r}; give a finite number")


def denoise(pipe: FluxPipeline, noise: Tensor, conditions: Sequence[Condition], sampling: Sampling) -> Tensor:
    """Integrate the flow from noise [B, I, 4C] to image latents of that shape, in the dtype of the embeddings.

    conditions  one for each pass of a step, see `seg2any.diffusion.guidance.conditions_of`

    Keeps the state that stock FluxPipeline shows to callbacks: guidance_scale, num_timesteps, current_timestep,
    interrupt.
    """
    device, dtype = pipe._execution_device, conditions[0].prompt_embeds.dtype
    latents, conditions = noise.to(device, dtype), [condition.to(device, dtype) for condition in conditions]
    timesteps = _timesteps(pipe.scheduler, latents.shape[1], sampling.num_inference_steps, device)
    pipe._guidance_scale, pipe._num_timesteps, pipe._interrupt = sampling.guidance_scale, len(timesteps), False
    cond_cache = ConditionCache(pipe.transformer)
    with (
        pipe.progress_bar(total=len(timesteps)) as progress,
        step_cache(pipe.transformer, sampling.step_cache, len(timesteps)),
    ):
        for step, t in enumerate(timesteps):
            if pipe.interrupt:
                break
            pipe._current_timestep = t
            known = [cond_cache.of(condition, pipe.guidance_scale) for condition in conditions]
            velocity = steered(_velocities(pipe, latents, t, known), len(latents), sampling.true_cfg_scale)
            latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
            if sampling.callback_on_step_end is not None:
                outputs = sampling.callback_on_step_end(pipe, step, t, {"latents": latents}) or {}
                latents = outputs.get("latents", latents)
            progress.update()
    pipe._current_timestep = None
    return latents


def _timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler, n_tokens: int, num_inference_steps: int, device: torch.device
) -> Tensor:
    """FLUX's schedule: equal steps, shifted by the number of image tokens."""
    config = scheduler.config
    mu = calculate_shift(
        n_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    sigmas = None if config.get("use_flow_sigmas") else even
    timesteps, _ = retrieve_timesteps(scheduler, num_inference_steps, device, sigmas=sigmas, mu=mu)
    scheduler.set_begin_index(0)
    return timesteps


def _velocities(pipe: FluxPipeline, latents: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """dx/ds of latents [B, I, 4C] under every condition, one condition's after another's: [n, I, 4C], n = B or 2B.

    One for twice the images gets the latents twice. Passes have names, by which step caches keep them apart.
    """
    copies = torch.cat([latents] * (conditions[0].tokens.batch_size // len(latents)))
    names = ("cond", "uncond")[: len(conditions)]
    return torch.cat([_velocity(pipe, name, copies, t, given) for name, given in zip(names, conditions, strict=True)])


def _velocity(pipe: FluxPipeline, name: str, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """dx/ds at time `t` (0 to 1000), [B, I, 4C]."""
    guidance = None
    if pipe.transformer.config.guidance_embeds:
        guidance = torch.full([len(latents)], pipe.guidance_scale, device=latents.device)
    with pipe.transformer.cache_context(name):
        return pipe.transformer(
            hidden_states=latents,
            timestep=t.expand(len(latents)).to(latents.dtype) / 1000,
            guidance=guidance,
            encoder_hidden_states=condition.prompt_embeds,
            pooled_projections=condition.pooled_prompt_embeds,
            joint_attention_kwargs={"condition": condition},
            return_dict=False,
        )[0]
