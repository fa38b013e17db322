"""Bring the encoders' outputs to the widths and grids that the language model and the mask decoder take.

Shape suffixes: B batch, h w grid, C D channels, s scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamLayerNorm


def fold(x: Tensor, block: int) -> Tensor:
    """Move blocks of pixels into channels: [B, h, w, C] -> [B, h / block, w / block, block^2 C].

    A new channel is (row in the block, column in the block, old channel), the last counting fastest.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)


def unfold(x: Tensor, block: int) -> Tensor:
    """Move channels into blocks of pixels: [B, h, w, block^2 C] -> [B, block h, block w, C].

    A channel is read as (column in the block, row in the block, new channel), as published: so it is no inverse of
    `fold`, nor torch's pixel_shuffle, which exchange rows and columns with this.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.permute(0, 1, 4, 2, 3, 5).reshape(batch, height * block, width * block, -1)


def shuffle(x: Tensor, scale: float) -> Tensor:
    """Change the grid [B, h, w, C] by a scale: below 1 by `fold`, above 1 by `unfold`."""
    if scale < 1:
        return fold(x, round(1 / scale))
    return unfold(x, round(scale)) if scale > 1 else x


def pad_to_even(x: Tensor) -> Tensor:
    """Add a column at the right and a row at the bottom of [B, h, w, C] where their number is odd, of zeros."""
    return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))


class Projector(nn.Module):
    """Linear layers with GELU between them; a map [B, h, w, C] is folded and flattened to tokens [B, n, D] first."""

    def __init__(self, channels: int, width: int, block: int = 1, depth: int = 2):
        super().__init__()
        self.block = block
        layers = [nn.Linear(channels * block**2, width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens [B, n, C] or a map."""
        return self.model(fold(x, self.block).flatten(1, 2) if x.ndim == 4 else x)


class Branch(nn.Module):
    """Convolutions without bias or activation, with norms between them, and a change of the grid by `scale`."""

    def __init__(self, channels: int, hidden: int, scale: float):
        super().__init__()
        self.scale = scale

        def norm(width: int) -> nn.Module:
            return SamLayerNorm(width, eps=1e-6, data_format="channels_first")

        wide = round(channels * scale)  # so that C / s channels are left after the shuffle
        self.model = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            norm(hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            norm(hidden),
            nn.Conv2d(hidden, wide, 1, bias=False),
            norm(wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Turn [B, h, w, C] into [B, C / s, s h, s w]."""
        x = self.model(pad_to_even(x).permute(0, 3, 1, 2))
        return shuffle(x.permute(0, 2, 3, 1), self.scale).permute(0, 3, 1, 2)


class Connector(nn.Module):
    """A branch for each hidden state of the encoder: the maps that the pixel decoder takes, fine to coarse."""

    def __init__(self, channels: int, hidden: int, scales: Sequence[float]):
        super().__init__()
        self.model = nn.ModuleList(Branch(channels, hidden, scale) for scale in scales)
        self.channels = tuple(round(channels / scale) for scale in scales)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Turn states [B, h, w, C] into maps [B, C / s, s h, s w]."""
        return [branch(state) for branch, state in zip(self.model, states, strict=True)]
