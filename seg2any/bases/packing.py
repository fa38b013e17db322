"""Pack latents into tokens, one token per 2 x 2 latent pixels, and unpack them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Pack latents [B, C, 2h, 2w] into tokens [B, h*w, 4C], row by row."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Unpack tokens [B, h*w, 4C] into latents [B, C, 2h, 2w], for the grid (h, w)."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)
