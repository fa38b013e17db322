"""Integrate the flow from noise to image latents by Euler steps on a schedule of times.

The loop of diffusers' pipeline gives both predictions of true CFG the same condition; this one gives each its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from seg2any.bases.base import Base, Condition
from seg2any.diffusion.cond_cache import ConditionCache
from seg2any.diffusion.guidance import steered
from seg2any.diffusion.step_cache import step_cache
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.diffusion.step_cache import CacheConfig

PASSES = ("cond", "uncond")  # step caches keep the predictions of true CFG apart by these names


@dataclass(frozen=True)
class Sampling:
    """Settings of the denoising loop.

    step_cache  a name of `STEP_CACHES`, or a configuration of diffusers

    Raises UserError for num_inference_steps below 1 and for a guidance_scale that is not finite.
    """

    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float = 1.0
    step_cache: str | CacheConfig = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.num_inference_steps, int) or self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {self.num_inference_steps!r}; give a whole number of at least 1")
        if not (isinstance(self.guidance_scale, Real) and math.isfinite(self.guidance_scale)):
            raise UserError(f"guidance_scale is {self.guidance_scale!r}; give a finite number")


class Watcher:
    """An observer of `denoise` that may change the run; this class changes nothing."""

    def __init__(self, guidance_scale: float):
        self.guidance_scale = guidance_scale

    def begin(self, n_steps: int) -> None:
        """Receive the number of steps, once, before the first step."""

    def goes_on(self, t: Tensor) -> bool:
        """Tell whether to take the step at time t (0 to 1000)."""
        return True

    def after(self, step: int, t: Tensor, latents: Tensor) -> Tensor:
        """Return the latents [B, I, D] for the next step."""
        return latents


def denoise(
    base: Base,
    scheduler: FlowMatchEulerDiscreteScheduler,
    noise: Tensor,
    conditions: Sequence[Condition],
    sampling: Sampling,
    watcher: Watcher | None = None,
) -> Tensor:
    """Integrate the flow from noise [B, I, D] to image latents of that shape, device and dtype.

    conditions  on the device of the noise, one per forward pass of a step, see `guidance.conditions_of`
    """
    watcher, latents = watcher or Watcher(sampling.guidance_scale), noise
    timesteps = times(base, scheduler, latents.shape[1], sampling.num_inference_steps, latents.device)
    cond_cache = ConditionCache(base)
    watcher.begin(len(timesteps))
    with step_cache(base, sampling.step_cache, len(timesteps)):
        for step, t in enumerate(timesteps):
            if not watcher.goes_on(t):
                break
            known = [cond_cache.of(condition, watcher.guidance_scale) for condition in conditions]
            predictions = _velocities(base, latents, t, known, watcher.guidance_scale)
            velocity = steered(predictions, len(latents), sampling.true_cfg_scale)
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0].to(noise.dtype)
            latents = watcher.after(step, t, latents)
    return latents


def times(
    base: Base,
    scheduler: FlowMatchEulerDiscreteScheduler,
    n_tokens: int,
    num_inference_steps: int,
    device: torch.device,
) -> Tensor:
    """Return the times of the steps, from 1000 down: equal steps, shifted for `n_tokens`."""
    mu = base.time_shift(scheduler.config, n_tokens, num_inference_steps)
    even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    sigmas = None if scheduler.config.get("use_flow_sigmas") else even
    scheduler.set_timesteps(num_inference_steps, device, sigmas=sigmas, mu=mu)
    scheduler.set_begin_index(0)
    return scheduler.timesteps


def _velocities(base: Base, latents: Tensor, t: Tensor, conditions: Sequence[Condition], guidance: float) -> Tensor:
    """Predict dx/ds of latents [B, I, D] under every condition: [B or 2B, I, D].

    t  time, 0 to 1000

    A condition for 2B samples, both predictions in one batch, receives the latents duplicated.
    """
    copies = torch.cat([latents] * (conditions[0].tokens.batch_size // len(latents)))
    s = t.expand(len(copies)).to(copies.dtype) / 1000
    predictions = []
    for name, condition in zip(PASSES, conditions, strict=False):
        with base.network.cache_context(name):
            predictions.append(base.velocity(copies, s, condition, guidance))
    return torch.cat(predictions)
