"""Latents as tokens: one token per 2 x 2 latent pixels, as flow transformers take them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Turn [B, C, 2h, 2w] into [B, h*w, 4C]."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn [B, h*w, 4C] into [B, C, 2h, 2w]."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)
