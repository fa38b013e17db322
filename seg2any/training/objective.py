"""What training minimises (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import assemble
from seg2any.training.encoded import EncodedSample
from seg2any.training.randomness import normal


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
        self,
        velocity: Callable[[Tensor, Tensor, Condition], Tensor],
        samples: Sequence[EncodedSample],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """A batch of (x0, y) -> its loss, a scalar. All that is random of a sample comes from its own generator."""
        samples = [self.dropped_out(sample, g) for sample, g in zip(samples, generators, strict=True)]
        condition = assemble([sample.layout for sample in samples], self.settings, generators)
        images, shapes = [sample.image for sample in samples], [sample.image.mean.shape for sample in samples]
        x0 = torch.stack([image.sample(e) for image, e in zip(images, normal(shapes, generators), strict=True)])
        noise = normal(shapes, generators)
        s = flow.noise_level(torch.cat([self.weighting.sample(1, generator) for generator in generators]))
        prediction = velocity(flow.interpolate(x0, noise, s), s, condition)
        target, weight = flow.velocity(x0, noise), self.weighting.loss_weight(s)
        return flow.loss(prediction, target.to(prediction.device), weight.to(prediction.device))

    def dropped_out(self, sample: EncodedSample, generator: torch.Generator) -> EncodedSample:
        """The sample, with the configured probabilities without its global caption or its contour tokens."""
        drop_caption, drop_contour = torch.rand(2, generator=generator).tolist()
        if drop_caption < self.caption_dropout:
            sample = sample.without_caption()
        if drop_contour < self.cond_dropout:
            sample = sample.without_contour()
        return sample
