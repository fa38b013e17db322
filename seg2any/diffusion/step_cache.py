"""Reuse results of earlier denoising steps: diffusers' step caches, by name.

name         skips                                                if
first_block  all blocks but the first                             the output of the first block has changed little
mag          all blocks                                           the measured ratios of the model predict a small error
taylorseer   attention, which it extrapolates                     in 4 of 5 steps, after the first 3

All change the image a little. They compare and keep image and condition rows alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from seg2any.system.errors import UserError

if TYPE_CHECKING:  # --help must not wait seconds for diffusers
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    from seg2any.bases.base import Base

    CacheConfig = FirstBlockCacheConfig | MagCacheConfig | TaylorSeerCacheConfig

STEP_CACHES = ("none", "first_block", "mag", "taylorseer")


def cache_config(name: str, base: Base, num_inference_steps: int) -> CacheConfig | None:
    """Build diffusers' configuration of a step cache; None for "none".

    Raises UserError for an unknown name, and for `mag` with a model that has no measured ratios.
    """
    if name not in STEP_CACHES:
        raise UserError(f"step_cache: {name!r} is unknown; choose one of {', '.join(STEP_CACHES)}")
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    if name == "first_block":
        return FirstBlockCacheConfig()
    if name == "taylorseer":
        return TaylorSeerCacheConfig(taylor_factors_dtype=base.network.dtype)
    if name == "mag":
        ratios = stretched(_mag_ratios(base), num_inference_steps)
        return MagCacheConfig(mag_ratios=ratios, num_inference_steps=num_inference_steps)
    return None


def _mag_ratios(base: Base) -> Sequence[float]:
    if base.mag_ratios is None:
        sizes = base.geometry
        raise UserError(
            f"step_cache mag: a model of {sizes.n_blocks} blocks of width {sizes.width} has no measured ratios; use "
            "first_block or taylorseer, or measure them with `python -m benchmarks.step_cache --calibrate`"
        )
    return base.mag_ratios


def stretched(ratios: Sequence[float], n_steps: int) -> list[float]:
    """Convert the ratios measured in one run to a run of `n_steps` steps.

    A longer step gets the product of the ratios that it spans; diffusers itself would pick one of them.
    """
    measured = np.arange(len(ratios)) / len(ratios)  # start of each step as a share of the run
    shrunk = np.interp(np.arange(n_steps) / n_steps, measured, np.log(ratios).cumsum())
    return np.exp(np.diff(shrunk, prepend=0)).tolist()


@contextmanager
def step_cache(base: Base, cache: str | CacheConfig, num_inference_steps: int) -> Iterator[None]:
    """Enable a fresh step cache for the `with` block. With "none", a cache of the caller stays.

    cache  a name of `STEP_CACHES`, or a configuration of diffusers

    Raises UserError if a cache is enabled already, or if the blocks are compiled.
    """
    network = base.network
    config = cache_config(cache, base, num_inference_steps) if isinstance(cache, str) else cache
    if config is None:
        if network.is_cache_enabled:
            network._reset_stateful_cache()  # an interrupted call leaves its state
        yield
        return
    if network.is_cache_enabled:
        raise UserError("step_cache: the transformer has a cache already; call transformer.disable_cache() first")
    if any(module._compiled_call_impl is not None for module in network.modules() if module is not network):
        raise UserError("step_cache: every call would compile the compiled blocks again; use one of the two")
    network.enable_cache(config)
    try:
        yield
    finally:
        network.disable_cache()
