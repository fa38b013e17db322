"""Compute the loss of generation (paper section 3.4), and validate it at fixed noise.

Shape suffixes: B batch, I image tokens, D channels, C latent channels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seg2any.attention.attend import Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base, Condition
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import assemble
from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.samples import EncodedSample

BINS = 4  # intervals of the noise level that validation reports separately: the loss depends on the level

# (x_s [B, I, D], s [B], condition) -> velocity [B, I, D]
Predict = Callable[[Tensor, Tensor, Condition], Tensor]


class Velocity(nn.Module):
    """The network as the loss sees it, v(x_s, s, y): the module that DDP wraps.

    It computes in the precision of the frozen weights, as generation does, without autocast: on CUDA that would run the
    norms in fp32.
    """

    def __init__(self, base: Base, guidance_scale: float):
        super().__init__()
        self.network = base.network
        self.base, self.guidance_scale = base, guidance_scale

    def forward(self, x: Tensor, s: Tensor, condition: Condition, tap: Tap | None = None) -> Tensor:
        """Predict dx/ds [B, I, D] in fp32 on the base's device from x [B, I, D] and s [B] in 0..1.

        tap  called before the attention of every block
        """
        device, dtype = self.base.device, self.base.dtype
        condition = condition.to(device, dtype)
        return self.base.velocity(x.to(device, dtype), s.to(device), condition, self.guidance_scale, tap).float()


def sample_losses(predict: Predict, x0: Tensor, noise: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """Compute || v(x_s, s, y) - (e - x0) ||^2 of each sample, [B].

    x0 and noise e are [B, I, D], s is [B].
    """
    prediction = predict(flow.interpolate(x0, noise, s), s, condition)
    return flow.sample_losses(prediction, flow.velocity(x0, noise).to(prediction.device))


@dataclass(eq=False)
class Objective:
    """L = E w(s) || v(x_s, s, y) - (e - x0) ||^2 with x_s = (1 - s) x0 + s e.

    weighting                      how often each s is drawn, and w(s)
    caption_dropout, cond_dropout  shares of samples, in [0, 1], whose y lacks the global caption, the contour tokens
    """

    settings: ConditionSettings
    weighting: flow.TimestepWeighting
    caption_dropout: float = 0.0
    cond_dropout: float = 0.0

    def __call__(
        self, predict: Predict, samples: Sequence[EncodedSample], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Return the loss of a batch, a scalar.

        Each sample draws all its random numbers from its own generator.
        """
        samples = [self.dropped_out(sample, g) for sample, g in zip(samples, generators, strict=True)]
        condition = assemble([sample.layout for sample in samples], self.settings, generators)
        images, shapes = [sample.image for sample in samples], [sample.image.mean.shape for sample in samples]
        x0 = torch.stack([image.sample(e) for image, e in zip(images, normal(shapes, generators), strict=True)])
        noise = normal(shapes, generators)
        s = flow.noise_level(torch.cat([self.weighting.sample(1, generator) for generator in generators]))
        losses = sample_losses(predict, x0, noise, s, condition)
        return (self.weighting.loss_weight(s).to(losses.device) * losses).mean()

    def dropped_out(self, sample: EncodedSample, generator: torch.Generator) -> EncodedSample:
        """Drop the global caption and the contour tokens, each with its probability."""
        drop_caption, drop_contour = torch.rand(2, generator=generator).tolist()
        if drop_caption < self.caption_dropout:
            sample = sample.without_caption()
        if drop_contour < self.cond_dropout:
            sample = sample.without_contour()
        return sample


def make_objective(config: Config) -> Objective:
    """Make the loss that the config describes.

    Raises UserError if no loss would ever reach the adapter of contour tokens: DDP would wait for its gradient.
    """
    model, trainer = config.model, config.trainer
    if model.condition.is_plain and model.condition.is_use_cond_token:
        raise UserError(
            "model.attention_mask_method: none has no contour tokens to train; set model.is_use_cond_token to false"
        )
    weighting = flow.TimestepWeighting(model.weighting_scheme, model.logit_mean, model.logit_std, model.mode_scale)
    return Objective(model.condition, weighting, trainer.caption_dropout, trainer.cond_dropout)


def normal(shapes: Sequence[torch.Size], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal numbers, one row of the batch from each generator."""
    return torch.stack([torch.randn(shape, generator=g) for shape, g in zip(shapes, generators, strict=True)])


@torch.no_grad()
def fixed_losses(
    samples: Sequence[EncodedSample],
    indices: Sequence[int],
    settings: ConditionSettings,
    predict: Predict,
    batch_size: int,
) -> Tensor:
    """Sum losses and count samples per interval of the noise level: [BINS, 2].

    Sample i always has the same noise and the same level, (i + 1/2) / n spread over the whole range, so two numbers of
    one data set can be compared whatever the batch size and the number of processes.
    """
    totals = torch.zeros(BINS, 2)
    for chosen in _of_one_size(samples, indices, batch_size):
        batch = [samples[i] for i in chosen]
        generators = [torch.Generator().manual_seed(i) for i in chosen]
        condition = assemble([sample.layout for sample in batch], settings, generators)
        x0 = torch.stack([sample.image.mean for sample in batch])
        noise = normal([x0.shape[1:]] * len(batch), generators)
        s = flow.noise_level((torch.tensor(chosen) * _stride(len(samples)) % len(samples) + 0.5) / len(samples))
        losses = sample_losses(predict, x0, noise, s, condition).cpu()
        bins = (s * BINS).ceil().long() - 1
        totals.index_add_(0, bins, torch.stack([losses, torch.ones_like(losses)], dim=1))
    return totals


def _of_one_size(samples: Sequence[EncodedSample], indices: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Split samples into batches whose images have the same size."""
    by_size = defaultdict(list)
    for index in indices:
        by_size[samples[index].layout.masks.shape[1:]].append(index)
    for same in by_size.values():
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))


def _stride(n: int) -> int:
    """Find a number coprime to n and far from 1, to give neighbours distant noise levels."""
    return next(stride for stride in range(max(1, int(n * 0.618)), n + 1) if math.gcd(stride, n) == 1 or stride == n)


def named_losses(totals: Tensor) -> dict[str, float]:
    """Name the mean loss `val_loss`, and that of each interval by its upper noise level.

    Totals [BINS, 2].
    """
    named = {"val_loss": (totals[:, 0].sum() / totals[:, 1].sum()).item()}
    for index, (total, count) in enumerate(totals.tolist()):
        if count:
            named[f"val_loss_s{(index + 1) / BINS:.2f}"] = total / count
    return named
