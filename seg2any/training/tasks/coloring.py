"""Train adapters that paint every instance of a photo in a colour of its own (gen2seg, arXiv 2505.15263)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn

from seg2any.adapters.files import save_adapters
from seg2any.data.catalog import data_set_name
from seg2any.generate.memory_estimate import GIB
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout.draw import beside
from seg2any.segment.coloring.painter import CONDITION, painting_settings
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.training import build
from seg2any.training.batches import TrainingSet
from seg2any.training.config import Config
from seg2any.training.elastic import Shares, with_shares
from seg2any.training.identity import CONTENT, WEIGHTS
from seg2any.training.memory import predicted_bytes
from seg2any.training.open_data import Planned, RawData, open_data
from seg2any.training.painting import Photo, PhotoEncoder, PhotoReader
from seg2any.training.sources import DataSources
from seg2any.training.strategy import Strategy
from seg2any.training.tasks.coloring_objective import Objective
from seg2any.training.tasks.flow_matching import Velocity

PARTLY_LABELLED = ("sacap_1m",)  # data sets whose masks leave instances out


class PaintingTask:
    """The task of a run that trains adapters to paint; see `seg2any.training.task.Task`."""

    pipeline: Seg2AnyPipeline
    network: Velocity
    data: TrainingSet
    objective: Objective
    strategy: Strategy

    def __init__(self, config: Config):
        settings = painting_settings(config.model.condition, config.coloring.photo)
        self.config = replace(config, model=replace(config.model, condition=settings))
        self.settings, self.options = settings, config.coloring
        if (config.coloring.crop or 0) > config.resolution:
            raise UserError(f"coloring.crop: {config.coloring.crop} is more than resolution {config.resolution}")

    @cached_property
    def raw(self) -> RawData:
        """The data sets as they are on the disk."""
        return open_data(self.config)

    def identity(self) -> dict[str, object]:
        """Fingerprint the training data and the base model's weights."""
        return {CONTENT: self.raw.train.fingerprint(), WEIGHTS: build.base_fingerprint(self.config)}

    def load(self, strategy: Strategy, saved: Path | None, planned: Planned) -> None:
        """Load FLUX, attach its adapters, and count the samples."""
        self.strategy = strategy
        self.pipeline = build.load_pipeline(self.config, strategy)
        transformer, base = self.pipeline.transformer, self.pipeline.base
        build.attach_adapters(transformer, self.config, saved)
        strategy.split(transformer)
        if (self.options.crop or 0) % (patch := base.geometry.pixels_per_token):
            raise UserError(f"coloring.crop: {self.options.crop} is no multiple of a token's {patch} pixels; round it")
        self.sources = DataSources(self.config, base, strategy.process)
        self.encode = PhotoEncoder(base, self.config.trainer.cache_latents)
        self.data = self._samples(self.raw.train)
        partly = self.options.partly_labelled
        if partly is None:
            partly = data_set_name(*_names(self.config)) in PARTLY_LABELLED
        self.objective = Objective(base, self.options, self.settings, partly)
        build.apply_memory_options(transformer, self.config)
        if self.config.trainer.gradient_checkpointing and self.options.loss == "instances":
            self.pipeline.vae.enable_gradient_checkpointing()
        self.network = Velocity(base, self.config.trainer.guidance_scale)

    def _samples(self, data: object) -> TrainingSet:
        sources = self.sources
        reader = PhotoReader(data, sources.preparation, self.options.crop)
        return TrainingSet(reader, self.encode, sources.counts(data), sources.skips, sources.workers)

    @cached_property
    def shown(self) -> list[Photo]:
        """The first usable photos of the validation set."""
        if self.raw.val is None:
            return []
        val = self._samples(self.raw.val)
        usable = np.flatnonzero(val.counts.usable)[: self.config.trainer.num_validation_samples]
        return [val[int(index)] for index in usable]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name the adapters' parameters as in the transformer."""
        return {name: p for name, p in self.pipeline.transformer.named_parameters() if p.requires_grad}

    def predicted_bytes(self, shares: Shares) -> int:
        """Estimate the most memory of the device that this process takes, the decoder's gradients left out."""
        longest = int(self.data.counts.image.max()) * (2 if self.options.photo == CONDITION else 1)
        longest += self.settings.max_sequence_length
        return predicted_bytes(with_shares(self.config, shares), self.pipeline, longest, self.strategy, True)

    def loss(self, network: nn.Module, samples: Sequence[Photo], generators: Sequence[torch.Generator]) -> Tensor:
        """Compute the loss of a batch."""
        return self.objective(network, samples, generators)

    def validation_losses(self) -> Mapping[str, float]:
        """Measure the loss of validation photos, one by one, with words that are always the same."""
        total = torch.zeros(2)
        for number in self.strategy.validation_process.share(range(len(self.shown))):
            generator = torch.Generator().manual_seed(number)
            total += torch.tensor([float(self.objective(self.network, [self.shown[number]], [generator])), 1.0])
        total = self.strategy.accelerator.reduce(total.to(self.strategy.device)).cpu()
        return {"val_loss": float(total[0] / total[1])} if total[1] else {}

    def validation_images(self, folder: Path) -> list[Image.Image]:
        """Draw validation photos with their paintings beside them, without words."""
        count = min(self.config.trainer.num_validation_images, len(self.shown))
        mine = {n: self._panel(self.shown[n]) for n in self.strategy.validation_process.share(range(count))}
        panels = dict(gather_object(list(mine.items())))
        if not self.strategy.accelerator.is_main_process:
            return []
        for number, panel in panels.items():
            with atomic_write(folder / f"{number:03d}.png") as temporary:
                panel.save(temporary)
        return [panel for _, panel in sorted(panels.items())]

    def _panel(self, photo: Photo) -> Image.Image:
        colors = self.objective.painted(self.network, photo)
        return beside([Image.fromarray(photo.read.pixels), Image.fromarray(colors)])

    def facts(self, shares: Shares) -> dict[str, str]:
        """Describe predicted memory, and what the loss compares."""
        what = {"instances": "colours of decoded pixels", "paintings": "latents of paintings"}[self.options.loss]
        return {
            "memory": f"about {self.predicted_bytes(shares) / GIB:.1f} GiB per process at most, predicted",
            "loss": f"{what}; the photo is the {self.options.photo}",
        }

    def usage(self, folder: Path) -> str | None:
        """Return the command that finds regions with what was trained."""
        name = self.config.model.pretrained_model_name_or_path
        words = ("python", "-m", "seg2any", "segment", "photo.png", "--method", "coloring", "--lora_ckpt_path")
        return shlex.join([*words, str(folder), "--pretrained_model_name_or_path", name])

    def save(self, folder: Path, step: int) -> None:
        """Write the adapters and their card."""
        range_name = "fixed" if self.options.loss == "paintings" else self.options.color_range
        own = {"photo": self.options.photo, "color_range": range_name, "legend_entries": self.options.legend_entries}
        save_adapters(self.pipeline.transformer, folder, replace(build.adapter_card(self.config, step), **own))


def _names(config: Config) -> tuple[str | None, str | None]:
    return config.data.train.type, config.data.train.target


def describe(config: Config) -> str:
    """Describe the run as that of a generation task, which has the same network. Raises UserError."""
    from seg2any.training.dry_run import describe as describe_adapters  # late: it reads data sets

    return describe_adapters(PaintingTask(config).config)
