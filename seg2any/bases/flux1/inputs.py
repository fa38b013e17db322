"""Read the inputs of FLUX.1's transformer: condition, positions and ControlNet residuals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from seg2any.attention.attend import Tap
from seg2any.bases.base import Condition
from seg2any.system.errors import UserError


def condition_of(joint_attention_kwargs: dict[str, Any] | None) -> tuple[Condition | None, Tap | None]:
    """Return condition and tap, or None for each. Raises UserError for other keys but `scale`."""
    given = dict(joint_attention_kwargs or {})
    condition, tap = given.pop("condition", None), given.pop("tap", None)
    if given:
        raise UserError(f"joint_attention_kwargs: {', '.join(given)} has no effect; give only condition, tap and scale")
    return condition, tap


def with_condition_rows(condition: Condition, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Append the condition tokens to image tokens: [B, I, channels] -> [B, I + C, channels].

    They are left out if the condition holds their keys. Raises UserError for other numbers of tokens than prepared.
    """
    tokens = condition.tokens
    given, expected = (*text.shape[:2], image.shape[1]), (tokens.batch_size, tokens.n_text, tokens.n_image)
    if given != expected:
        raise UserError(f"condition: (batch, text, image) tokens are {given}, but it was prepared for {expected}")
    if not condition.needs_cond_rows:
        return image
    return torch.cat([image, condition.cond.to(image.dtype)], 1)


def stock_positions(txt_ids: torch.Tensor, img_ids: torch.Tensor) -> torch.Tensor:
    """Join text ids [T, 3] and image ids [I, 3] to [1, T + I, 3].

    Also takes the older form [B, T, 3] and [B, I, 3], in which all samples have the same ids.
    """
    return torch.cat([ids[0] if ids.ndim == 3 else ids for ids in (txt_ids, img_ids)])[None]


def control_residuals(
    samples: Sequence[torch.Tensor] | None, n_blocks: int, repeat: bool = False
) -> list[torch.Tensor | None]:
    """Assign ControlNet outputs to blocks: one output per run of blocks, or in turns (`repeat`)."""
    if samples is None:
        return [None] * n_blocks
    run = math.ceil(n_blocks / len(samples))
    return [samples[i % len(samples) if repeat else i // run] for i in range(n_blocks)]
