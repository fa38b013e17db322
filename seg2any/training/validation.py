"""Is it getting better? A loss at noise that never changes, and images, both from the live transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from seg2any import flow
from seg2any.condition import Condition
from seg2any.config import Config
from seg2any.files import atomic_write
from seg2any.layout import Layout
from seg2any.pipeline import Seg2AnyPipeline
from seg2any.prepare import assemble
from seg2any.settings import ConditionSettings
from seg2any.training.cache import EncodedDataSet

BINS = 4  # of the noise level, each reported by itself: the loss means something else at every level

# (x_s [B, I, D], s [B], condition) -> velocity [B, I, D]
Predict = Callable[[Tensor, Tensor, Condition], Tensor]


@torch.no_grad()
def fixed_losses(
    samples: EncodedDataSet, indices: Sequence[int], settings: ConditionSettings, predict: Predict, batch_size: int
) -> Tensor:
    """Sums of losses and counts of samples per noise level bin, [BINS, 2], over samples `indices`.

    Sample i always has the same noise and the same level, (i + 1/2) / n spread over the whole range, so that two
    numbers of one data set compare, whatever the batch size and the number of processes.
    """
    totals = torch.zeros(BINS, 2)
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        batch = [samples[i] for i in chosen]
        generators = [torch.Generator().manual_seed(i) for i in chosen]
        condition = assemble([sample.layout for sample in batch], settings, generators)
        x0 = torch.stack([sample.image.mean for sample in batch])
        noise = torch.stack([torch.randn(x0.shape[1:], generator=generator) for generator in generators])
        s = flow.noise_level((torch.tensor(chosen) * _stride(len(samples)) % len(samples) + 0.5) / len(samples))
        prediction = predict(flow.interpolate(x0, noise, s), s, condition).cpu()
        losses = flow.sample_losses(prediction, flow.velocity(x0, noise))
        bins = (s * BINS).ceil().long() - 1
        totals.index_add_(0, bins, torch.stack([losses, torch.ones_like(losses)], dim=1))
    return totals


def _stride(n: int) -> int:
    """Coprime to n and far from 1, so that neighbours of the data set get distant noise levels."""
    return next(stride for stride in range(max(1, int(n * 0.618)), n + 1) if math.gcd(stride, n) == 1 or stride == n)


def named_losses(totals: Tensor) -> dict[str, float]:
    """`val_loss`, and one number per bin named by its upper noise level."""
    named = {"val_loss": (totals[:, 0].sum() / totals[:, 1].sum()).item()}
    for index, (total, count) in enumerate(totals.tolist()):
        if count:
            named[f"val_loss_s{(index + 1) / BINS:.2f}"] = total / count
    return named


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def write_images(
    pipeline: Seg2AnyPipeline, layouts: Sequence[Layout], config: Config, settings: ConditionSettings, folder: Path
) -> None:
    """One PNG per layout, seed = its number, made by `pipeline` as it is: no second model."""
    for number, layout in enumerate(layouts):
        image = pipeline(
            layout,
            height=config.resolution,
            width=config.resolution,
            num_inference_steps=config.model.num_inference_steps,
            guidance_scale=config.eval.guidance_scale,
            seeds=[number],
            settings=settings,
        ).images[0]
        with atomic_write(folder / f"{number:03d}.png") as temporary:
            image.save(temporary)
