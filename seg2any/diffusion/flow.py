"""Compute rectified flow: noise level, input, target and loss, as pure functions.

One straight path joins an image x0 and noise e; s in (0, 1] is the noise level ("sigma"):

    x_s = (1 - s) x0 + s e          dx/ds = e - x0          L = E_{x0, e, s} w(s) || v(x_s, s, y) - (e - x0) ||^2

Seg2Any section 3.1; the densities of s are those of Esser et al. 2024 (arXiv 2403.03206) section 3.1.
Shape suffixes: B batch, I image tokens, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seg2any.system.errors import UserError

TRAIN_STEPS = 1000  # number of equally spaced noise levels in training, without a shift

MOST_MODE = 2 / (math.pi - 2)  # above it, u is not monotonic and leaves [0, 1]
SCHEMES = ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap")


@dataclass(frozen=True)
class TimestepWeighting:
    """The density of noise levels in training, and their weight in the loss.

    none                      u ~ U(0, 1), weight 1; the published choice
    logit_normal, mode        change the density: `logit_mean` and `logit_std`; `mode_scale` in [-1, MOST_MODE]
    sigma_sqrt, cosmap        change the weight

    Raises UserError for an unknown scheme and for a mode_scale out of range.
    """

    scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29

    def __post_init__(self):
        if self.scheme not in SCHEMES:
            raise UserError(f"weighting_scheme is {self.scheme!r}; choose one of {', '.join(SCHEMES)}")
        if self.scheme == "mode" and not -1 <= self.mode_scale <= MOST_MODE:
            raise UserError(f"mode_scale is {self.mode_scale}; give a number from -1 to {MOST_MODE:.4f}")

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw u [B] in [0, 1]; u = 0 is pure noise.

        Drawn on the CPU, so that a seed gives the same levels on every machine.
        """
        if self.scheme == "logit_normal":
            return torch.sigmoid(self.logit_mean + self.logit_std * torch.randn(batch_size, generator=generator))
        u = torch.rand(batch_size, generator=generator)
        if self.scheme == "mode":
            u = 1 - u - self.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        return u

    @property
    def median(self) -> float:
        """Return the noise level s above which half of the draws lie."""
        return 1 - 1 / (1 + math.exp(-self.logit_mean)) if self.scheme == "logit_normal" else 0.5

    def loss_weight(self, s: Tensor) -> Tensor:
        """Return the loss weight w(s), elementwise."""
        if self.scheme == "sigma_sqrt":
            return s**-2
        if self.scheme == "cosmap":
            return 2 / (math.pi * (1 - 2 * s + 2 * s**2))
        return torch.ones_like(s)


def noise_level(u: Tensor) -> Tensor:
    """Return s in {1/1000, ..., 1}: u picks a level, counted from the noisiest down."""
    index = (u * TRAIN_STEPS).long().clamp(0, TRAIN_STEPS - 1)
    return (TRAIN_STEPS - index).to(torch.float32) / TRAIN_STEPS


def interpolate(x0: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """Return x_s = (1 - s) x0 + s e for x0 and noise [B, I, D], s [B]."""
    s = s.view(-1, *[1] * (x0.ndim - 1))
    return (1 - s) * x0 + s * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Return dx/ds = e - x0, the target of the prediction."""
    return noise - x0


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Average || v - (e - x0) ||^2 over tokens and channels, in fp32: [B]."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute the loss E_B w(s) || v - (e - x0) ||^2, a scalar; weight [B]."""
    return (weight * sample_losses(prediction, target)).mean()
