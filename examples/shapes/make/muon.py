"""Muon in fp32: torch's own computes in bfloat16, at a tenth of the speed on a CPU that has no fast bfloat16."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic a x + b x^3 + c x^5: singular values go to about 1
ITERATIONS = 5
MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2  # so that one learning rate serves both


class Muon(torch.optim.Optimizer):
    """Steps of momentum, made orthogonal, for matrices; matrices of equal shape are computed together."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01):
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            of_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    of_shape[matrix.shape].append(matrix)
            for shape, matrices in of_shape.items():
                steps = orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                rate = group["lr"] * RMS_OF_ADAMW * max(shape) ** 0.5
                for matrix, step in zip(matrices, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """Add the gradient to its running mean, and look one step ahead, as Nesterov does."""
        state = self.state[matrix]
        mean = state.setdefault("momentum", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(mean, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [K, m, n] to 0.7 to 1.2 by Newton-Schulz iterations."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT.contiguous()).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x  # torch.baddbmm takes eight times as long on a CPU
    return x
