"""Bring decoded colours to 0..255: for each image, or in one of three published ways.

Shapes: decoded and result float [B, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GAMMA = 0.7  # of the published pipeline of ViT-MAE
TINY = 1e-5  # added to the published divisors


def as_pixels(colors: Tensor) -> np.ndarray:
    """Round the first picture of a batch in 0..255: uint8 [H, W, 3]."""
    return colors[0].clamp(0, 255).round().permute(1, 2, 0).to("cpu", torch.uint8).numpy()


def own_range(decoded: Tensor) -> Tensor:
    """Spread each image over 0..255 by its least and greatest number; one without contrast becomes black."""
    least, most = decoded.amin((1, 2, 3), keepdim=True), decoded.amax((1, 2, 3), keepdim=True)
    return (decoded - least) / (most - least).clamp_min(torch.finfo(decoded.dtype).tiny) * 255


def fixed_range(decoded: Tensor) -> Tensor:
    """Map -1..1 to 0..255, as photos are decoded; needed where colours have names."""
    return (decoded / 2 + 0.5) * 255


def published_training(decoded: Tensor) -> Tensor:
    """Compute (x + |min|) / (|max| + |min|) over the whole batch, as published for training."""
    return _shifted(decoded, decoded.min(), decoded.max()) * 255


def published_pipeline(decoded: Tensor) -> Tensor:
    """Shift by |min|, then compute y / (|max y| + |min y|) over the whole batch, as published for Stable Diffusion."""
    y = decoded + decoded.min().abs()
    return y / (y.max().abs() + y.min().abs()).clamp_min(torch.finfo(y.dtype).tiny) * 255


def published_mae(decoded: Tensor) -> Tensor:
    """Compute (x + |min|) / (|max| + |min|) of each image to the power 0.7, as published for ViT-MAE."""
    least, most = decoded.amin((1, 2, 3), keepdim=True), decoded.amax((1, 2, 3), keepdim=True)
    return _shifted(decoded, least, most) ** GAMMA * 255


def _shifted(x: Tensor, least: Tensor, most: Tensor) -> Tensor:
    return (x + least.abs()) / (most.abs() + least.abs() + TINY)


RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "own": own_range,
    "fixed": fixed_range,
    "published_training": published_training,
    "published_pipeline": published_pipeline,
    "published_mae": published_mae,
}
