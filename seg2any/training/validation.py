"""Is it getting better? A loss at noise that never changes, and images, both from the live transformer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import assemble
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout
from seg2any.layout.draw import panel
from seg2any.system.files import atomic_write
from seg2any.system.processes import Process
from seg2any.training.config import Config
from seg2any.training.encoded import EncodedSample
from seg2any.training.run_data import RunData
from seg2any.training.velocity import Velocity

BINS = 4  # of the noise level, each reported by itself: the loss means something else at every level

# (x_s [B, I, D], s [B], condition) -> velocity [B, I, D]
Predict = Callable[[Tensor, Tensor, Condition], Tensor]


@torch.no_grad()
def fixed_losses(
    samples: Sequence[EncodedSample],
    indices: Sequence[int],
    settings: ConditionSettings,
    predict: Predict,
    batch_size: int,
) -> Tensor:
    """Sums of losses and counts of samples per noise level bin, [BINS, 2], over samples `indices`.

    Sample i always has the same noise and the same level, (i + 1/2) / n spread over the whole range, so that two
    numbers of one data set compare, whatever the batch size and the number of processes.
    """
    totals = torch.zeros(BINS, 2)
    for chosen in _of_one_size(samples, indices, batch_size):
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


def _of_one_size(samples: Sequence[EncodedSample], indices: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of samples whose images have the same size."""
    by_size = defaultdict(list)
    for index in indices:
        by_size[samples[index].layout.masks.shape[1:]].append(index)
    for same in by_size.values():
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))


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


class Validation:
    """The validation data of a run, and its live networks."""

    def __init__(
        self,
        config: Config,
        data: RunData,
        settings: ConditionSettings,
        pipeline: Seg2AnyPipeline,
        velocity: Velocity,
        accelerator: Accelerator,
        process: Process,
    ):
        """velocity  without the wrapper that waits for the other processes: their shares differ in size
        process   validates on its share of the samples; `Process()` if all have to make equally many forward passes
        """
        self.config, self.data, self.settings = config, data, settings
        self.pipeline, self.velocity, self.accelerator = pipeline, velocity, accelerator
        self.process = process

    def losses(self) -> dict[str, float]:
        """Of all processes' shares together."""
        indices = self.process.share(range(len(self.data.val)))
        batch_size = self.config.trainer.train_batch_size
        totals = fixed_losses(self.data.val, indices, self.settings, self.velocity, batch_size)
        return named_losses(self.accelerator.reduce(totals.to(self.accelerator.device)).cpu())

    def images(self, folder: Path) -> list[Image.Image]:
        """Every process makes its share of the configured number; the main one writes them to `folder`.

        Returns the panels on the main process, nothing on the others.
        """
        mine = {number: self._image(number) for number in self.process.share(range(len(self.data.shown)))}
        images = dict(gather_object(list(mine.items())))
        return write_images(images, self.data.shown, folder) if self.accelerator.is_main_process else []

    def _image(self, number: int) -> Image.Image:
        """Of layout `number`, which is its seed, by the pipeline as it is: no second model."""
        device, dtype = self.pipeline.transformer.device, self.velocity.dtype
        with _on(self.pipeline.vae, device), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return self.pipeline(
                self.data.shown[number],
                height=self.config.resolution,
                width=self.config.resolution,
                num_inference_steps=self.config.model.num_inference_steps,
                guidance_scale=self.config.eval.guidance_scale,
                seeds=[number],
                settings=self.settings,
                known_texts=self.data.shown_texts,
            ).images[0]


def write_images(images: Mapping[int, Image.Image], layouts: Sequence[Layout], folder: Path) -> list[Image.Image]:
    """NNN.png, and panels/NNN.png with contour, overlay and legend beside it; returns the panels in order."""
    panels = {number: panel(layouts[number], image) for number, image in sorted(images.items())}
    for place, pictures in ((folder, images), (folder / "panels", panels)):
        for number, picture in pictures.items():
            with atomic_write(place / f"{number:03d}.png") as temporary:
                picture.save(temporary)
    return list(panels.values())


@contextmanager
def _on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module is on `device` inside, and where it was before afterwards."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)
