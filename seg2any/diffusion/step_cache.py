"""Steps of denoising that reuse what an earlier one computed: the step caches of diffusers, by name.

name         what it skips                                        when
first_block  all blocks but the first                             the first block changes little from step to step
mag          all blocks                                           the known shrinking of the model's output says so
taylorseer   attention, extrapolated; feed-forward is computed    4 of 5 steps, once 3 are done

All change the image a little. What they compare and keep are the image and condition rows alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from seg2any.system.errors import UserError

if TYPE_CHECKING:  # diffusers takes seconds: not before --help is answered
    from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel, MagCacheConfig, TaylorSeerCacheConfig

    CacheConfig = FirstBlockCacheConfig | MagCacheConfig | TaylorSeerCacheConfig

STEP_CACHES = ("none", "first_block", "mag", "taylorseer")
# By (double blocks, single blocks, width): how much smaller the blocks' contribution is than in the step before.
# Measured by `python -m benchmarks.step_cache --calibrate`; FLUX.1's come with diffusers.
FLUX1_SIZES = (19, 38, 3072)
MAG_RATIOS = {
    (3, 5, 192): (  # examples/shapes
        *(1.0, 1.0213, 0.9531, 0.9742, 0.9833, 0.9873, 0.9827, 0.976, 0.9721, 0.9717),
        *(0.968, 0.962, 0.9641, 0.9576, 0.9528, 0.9472, 0.9414, 0.9372, 0.9353, 0.971),
    ),
}


def cache_config(name: str, transformer: FluxTransformer2DModel, num_inference_steps: int) -> CacheConfig | None:
    """The settings of a step cache, None for "none". Raises UserError for names and models that have none."""
    if name not in STEP_CACHES:
        raise UserError(f"step_cache is {name!r}; use one of {', '.join(STEP_CACHES)}")
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    if name == "first_block":
        return FirstBlockCacheConfig()
    if name == "taylorseer":
        return TaylorSeerCacheConfig(taylor_factors_dtype=transformer.dtype)
    if name == "mag":
        ratios = stretched(_mag_ratios(transformer), num_inference_steps)
        return MagCacheConfig(mag_ratios=ratios, num_inference_steps=num_inference_steps)
    return None


def sizes_of(transformer: FluxTransformer2DModel) -> tuple[int, int, int]:
    """Double blocks, single blocks and width."""
    sizes = transformer.config
    return sizes.num_layers, sizes.num_single_layers, sizes.num_attention_heads * sizes.attention_head_dim


def _mag_ratios(transformer: FluxTransformer2DModel) -> list[float]:
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    double, single, width = sizes = sizes_of(transformer)
    if sizes == FLUX1_SIZES:
        return FLUX_MAG_RATIOS.tolist()
    if sizes not in MAG_RATIOS:
        raise UserError(
            f"step_cache mag: nobody has measured a model of {double} + {single} blocks of width {width}; "
            "use first_block or taylorseer, or `python -m benchmarks.step_cache --calibrate`"
        )
    return list(MAG_RATIOS[sizes])


def stretched(ratios: Sequence[float], n_steps: int) -> list[float]:
    """Ratios of a run of `n_steps` from those of a run of another length: all of a long step's are multiplied, where
    diffusers would pick one of them and hold two long steps for as alike as two short ones."""
    measured = np.arange(len(ratios)) / len(ratios)  # where in the run each step begins
    shrunk = np.interp(np.arange(n_steps) / n_steps, measured, np.log(ratios).cumsum())
    return np.exp(np.diff(shrunk, prepend=0)).tolist()


@contextmanager
def step_cache(
    transformer: FluxTransformer2DModel, cache: str | CacheConfig, num_inference_steps: int
) -> Iterator[None]:
    """Denoise with a step cache, fresh and gone again afterwards; "none" leaves one alone that the caller enabled.

    cache  a name of `STEP_CACHES`, or a configuration of diffusers
    """
    config = cache_config(cache, transformer, num_inference_steps) if isinstance(cache, str) else cache
    if config is None:
        if transformer.is_cache_enabled:
            transformer._reset_stateful_cache()  # an interrupted call leaves its own
        yield
        return
    if transformer.is_cache_enabled:
        raise UserError("step_cache: the transformer has a cache already; call transformer.disable_cache() first")
    if any(block._compiled_call_impl is not None for block in transformer.single_transformer_blocks):
        raise UserError("step_cache: compiled blocks would be compiled again for every call; use one of the two")
    transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()
