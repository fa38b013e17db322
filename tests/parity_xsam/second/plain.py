"""Layers between the networks of X-SAM, written out; differentiable, in float64.

Weights are dicts of the published names below a layer's prefix.
"""

from __future__ import annotations

import functools
import math

import torch

Tensor = torch.Tensor
Weights = dict[str, Tensor]


@functools.cache
def moved(height: int, width: int, channels: int, scale: float) -> Tensor:
    """List where the shuffled map [H', W', C'] takes its numbers from, as places in the flat map [H * W * C]."""
    if scale < 1:
        n = round(1 / scale)
        out = torch.zeros(height // n, width // n, channels * n * n, dtype=torch.int64)
    else:
        n = round(scale)
        out = torch.zeros(height * n, width * n, channels // (n * n), dtype=torch.int64)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                place = (row * width + column) * channels + channel
                if scale < 1:  # (row in the block, column in the block, channel)
                    if row // n < out.shape[0] and column // n < out.shape[1]:
                        at = ((row % n) * n + column % n) * channels + channel
                        out[row // n, column // n, at] = place
                else:  # (column in the block, row in the block, channel)
                    block, new = divmod(channel, out.shape[2])
                    out[row * n + block % n, column * n + block // n, new] = place
    return out


def shuffle(x: Tensor, scale: float) -> Tensor:
    """Change the grid of [B, H, W, C] by a scale."""
    return x if scale == 1 else x.flatten(1)[:, moved(*x.shape[1:], scale)]


def pad_even(x: Tensor) -> Tensor:
    """Add zeros at the right and bottom of [B, H, W, C]."""
    batch, height, width, channels = x.shape
    out = x.new_zeros(batch, height + height % 2, width + width % 2, channels)
    out[:, :height, :width] = x
    return out


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise the last dimension."""
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(spread + 1e-6) * weight + bias


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve [B, H, W, C] with weight [D, C, k, k], k odd, zeros around the map."""
    size, (batch, height, width, channels) = weight.shape[-1], x.shape
    edge = size // 2
    wide = x.new_zeros(batch, height + 2 * edge, width + 2 * edge, channels)
    wide[:, edge : edge + height, edge : edge + width] = x
    out = x.new_zeros(batch, height, width, len(weight))
    for row in range(size):
        for column in range(size):
            out = out + wide[:, row : row + height, column : column + width] @ weight[:, :, row, column].T
    return out


def branch(x: Tensor, weights: Weights, scale: float) -> Tensor:
    """Run a branch of the connector: [B, H, W, C] -> [B, C / s, s H, s W]."""
    x = pad_even(x)
    for layer in (0, 2, 4):
        x = convolve(x, weights[f"model.{layer}.weight"])
        x = norm(x, weights[f"model.{layer + 1}.weight"], weights[f"model.{layer + 1}.bias"])
    return shuffle(x, scale).permute(0, 3, 1, 2)


def project(x: Tensor, weights: Weights, ratio: float = 1) -> Tensor:
    """Run a projector over tokens [B, n, C] or a map [B, H, W, C]."""
    if x.dim() == 4:
        x = shuffle(x, ratio).flatten(1, 2)
    layers = sorted(int(name.split(".")[1]) for name in weights if name.endswith(".weight"))
    for layer in layers:
        if layer:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        x = x @ weights[f"model.{layer}.weight"].T + weights[f"model.{layer}.bias"]
    return x


def resizing(old: int, new: int) -> Tensor:
    """Make the matrix [new, old] that resizes a line bilinearly, corners not aligned."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for place in range(new):
        at = max((place + 0.5) * old / new - 0.5, 0.0)
        low = min(int(at), old - 1)
        high = min(low + 1, old - 1)
        matrix[place, low] += 1 - (at - low)
        matrix[place, high] += at - low
    return matrix


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [.., H, W] bilinearly."""
    return resizing(x.shape[-2], size[0]) @ x @ resizing(x.shape[-1], size[1]).T


def cosines(queries: Tensor, conditions: Tensor, present: Tensor | None, logit_scale: Tensor) -> Tensor:
    """Compute class logits [R, Q, K] of queries [R, Q, D] and conditions [R, K, D]."""
    rows = []
    for row in range(len(queries)):
        lengths = torch.outer(queries[row].norm(dim=-1), conditions[row].norm(dim=-1))
        logits = torch.exp(logit_scale) * (queries[row] @ conditions[row].T) / lengths
        logits = torch.clamp(logits, -500, 500)
        if present is not None:
            logits = torch.where(present[row].bool(), logits, torch.tensor(-1e9, dtype=logits.dtype))
        rows.append(logits)
    return torch.stack(rows)
