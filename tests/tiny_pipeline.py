"""Seg2AnyPipeline around the small stock model, with layouts and call arguments for tests."""

from __future__ import annotations

import copy

import numpy as np
import torch
from diffusers import FluxPipeline

from seg2any import Layout, Seg2AnyPipeline
from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import NAMES, ConditionSettings

SIZE = (64, 96)
FAST = {
    "num_inference_steps": 2,
    "output_type": "latent",
    "max_sequence_length": 24,
    "regional_max_sequence_length": 12,
}
HARD = {"attention_mask_method": "hard", "hard_attn_block_range": (1, 3)}
CLOSE = {"atol": 1e-4, "rtol": 0}
CARD = AdapterCard(
    base_model="tiny",
    condition=ConditionSettings(
        attention_mask_method="base",
        hard_attn_block_range=(0, 2),
        cond_scale_factor=2,
        max_sequence_length=24,
        regional_max_sequence_length=12,
    ),
)


def layout(rows: list[int], caption: str | None, **rest) -> Layout:
    """Build a layout of overlapping bands.

    Region i fills the rows from 8 i down to `rows[i]`, except for a horizontal margin that grows with i.
    """
    masks = np.zeros((len(rows), *SIZE), dtype=bool)
    for number, bottom in enumerate(rows):
        masks[number, 8 * number : bottom, 10 * number : 90 - 3 * number] = True
    return Layout(masks, ("a blue square", "a green star", "a plain heart")[: len(rows)], caption, **rest)


ONE = layout([40], "a red circle", seed=11)
TWO = layout([30, 60], None, seed=12)
THREE = layout([20, 40, 64], "a green heart on the letter background", seed=13)
MANY = [ONE, TWO, THREE]


def fresh_pipe(stock_pipe: FluxPipeline) -> Seg2AnyPipeline:
    """Build a Seg2AnyPipeline on its own copy of the transformer."""
    parts = {**stock_pipe.components, "transformer": copy.deepcopy(stock_pipe.transformer)}
    pipe = Seg2AnyPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def copied(pipe: Seg2AnyPipeline) -> Seg2AnyPipeline:
    """Copy a pipeline's transformer with its adapters; the other parts are shared, and the card is not set."""
    twin = Seg2AnyPipeline(**{**pipe.components, "transformer": copy.deepcopy(pipe.transformer)})
    twin.set_progress_bar_config(disable=True)
    return twin


def images_of(pipe: Seg2AnyPipeline, layouts, **arguments):
    """Call the pipeline and return its images; `arguments` may also name condition settings."""
    changed = {name: arguments.pop(name) for name in NAMES if name in arguments}
    settings = (arguments.pop("settings", None) or pipe.settings).override(changed)
    return pipe(layouts, settings=settings, **arguments).images


def latents_of(pipe: Seg2AnyPipeline, layouts, **arguments) -> torch.Tensor:
    return images_of(pipe, layouts, **{**FAST, **HARD, **arguments})
