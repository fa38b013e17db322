"""Train Seg2Any's adapters: FLUX is frozen, two LoRA adapters learn (paper section 3.4)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn

from seg2any.adapters.files import save_adapters
from seg2any.generate.memory_estimate import GIB
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout
from seg2any.layout.draw import panel
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.training import build
from seg2any.training.batches import TrainingSet
from seg2any.training.config import Config
from seg2any.training.elastic import Shares, with_shares
from seg2any.training.identity import CONTENT, WEIGHTS
from seg2any.training.memory import has_room_for_encoders, predicted_bytes
from seg2any.training.open_data import Planned, RawData, RunData, load_data, open_data
from seg2any.training.samples import EncodedSample
from seg2any.training.strategy import Strategy
from seg2any.training.tasks.flow_matching import Velocity, fixed_losses, make_objective, named_losses


class Generation:
    """The task of a run that trains the adapters `default` and `cond`.

    See `seg2any.training.task.Task`.
    """

    pipeline: Seg2AnyPipeline
    network: Velocity
    inputs: RunData
    strategy: Strategy

    def __init__(self, config: Config):
        self.config, self.settings = config, config.model.condition
        self.objective = make_objective(config)

    @cached_property
    def raw(self) -> RawData:
        """The data sets as they are on the disk."""
        return open_data(self.config)

    @property
    def data(self) -> TrainingSet:
        """The samples to train on."""
        return self.inputs.train

    def identity(self) -> dict[str, object]:
        """Fingerprint the training data and the base model's weights."""
        return {CONTENT: self.raw.train.fingerprint(), WEIGHTS: build.base_fingerprint(self.config)}

    def load(self, strategy: Strategy, saved: Path | None, planned: Planned) -> None:
        """Load FLUX, attach its adapters, and fill the configured caches."""
        self.strategy = strategy
        self.pipeline = build.load_pipeline(self.config, strategy)
        transformer = self.pipeline.transformer
        build.check_block_range(self.settings, self.pipeline.base.geometry.n_blocks)
        build.attach_adapters(transformer, self.config, saved)
        strategy.split(transformer)
        self.inputs = load_data(
            *(self.raw, self.config, self.pipeline.base, strategy.process, planned),
            lambda train: has_room_for_encoders(self.config, self.pipeline, _longest(train), strategy),
        )
        build.apply_memory_options(transformer, self.config)
        self.network = Velocity(self.pipeline.base, self.config.trainer.guidance_scale)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name the adapters' parameters as in the transformer."""
        return {name: p for name, p in self.pipeline.transformer.named_parameters() if p.requires_grad}

    def predicted_bytes(self, shares: Shares) -> int:
        """Estimate the most memory of the device that this process takes."""
        config = with_shares(self.config, shares)
        encodes_images = bool(self.inputs.encoders.users) or not config.trainer.cache_latents
        return predicted_bytes(config, self.pipeline, _longest(self.data), self.strategy, encodes_images)

    def loss(
        self, network: nn.Module, samples: Sequence[EncodedSample], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Compute the flow-matching loss of a batch."""
        return self.objective(network, samples, generators)

    def validation_losses(self) -> Mapping[str, float]:
        """Measure the loss at fixed noise.

        Processes of unequal shares may not wait for each other's passes.
        """
        samples = self.inputs.val
        if samples is None:
            return {}
        indices = self.strategy.validation_process.share(range(len(samples)))
        batch_size = self.config.trainer.train_batch_size
        totals = fixed_losses(samples, indices, self.settings, self.network, batch_size)
        return named_losses(self.strategy.accelerator.reduce(totals.to(self.strategy.device)).cpu())

    def validation_images(self, folder: Path) -> list[Image.Image]:
        """Draw the first validation layouts with the network as it is.

        Return their panels on the main process.
        """
        shown = self.inputs.shown
        mine = {n: self._image(n) for n in self.strategy.validation_process.share(range(len(shown)))}
        images = dict(gather_object(list(mine.items())))
        return write_images(images, shown, folder) if self.strategy.accelerator.is_main_process else []

    def _image(self, number: int) -> Image.Image:
        """Draw layout `number` with seed `number`."""
        with _on(self.pipeline.vae, self.pipeline.base.device):
            return self.pipeline(
                self.inputs.shown[number],
                height=self.config.resolution,
                width=self.config.resolution,
                num_inference_steps=self.config.model.num_inference_steps,
                guidance_scale=self.config.eval.guidance_scale,
                seeds=[number],
                settings=self.settings,
                known_texts=self.inputs.shown_texts,
            ).images[0]

    def facts(self, shares: Shares) -> dict[str, str]:
        """Describe predicted memory and caches."""
        trainer = self.config.trainer
        kept = {"none": [], "classes": ["class names"], "all": ["text embeddings"]}[trainer.cache_text]
        kept = [*kept, *(["latents"] if trainer.cache_latents else [])]
        place, fill = trainer.cache_dir or "memory", self.data.fill
        facts = {
            "memory": f"about {self.predicted_bytes(shares) / GIB:.1f} GiB per process at most, predicted",
            "cached": f"{' and '.join(kept)}, in {place}" if kept else "nothing",
        }
        if fill and fill.total:
            facts["to encode"] = (
                f"{fill.total:,} samples of this process, each before its first step; trainer.cache=all encodes every "
                "sample before step 1"
            )
        return facts

    def usage(self, folder: Path) -> str | None:
        """Write a layout of this run beside `folder`, and return the command that makes its image.

        None if the data set has been damaged, or the disk is full: a finished run does not fail for it.
        """
        path = folder.parent / "layout.npz"
        try:
            layout = self.inputs.shown[0] if self.inputs.shown else self.raw.train[self._first()].layout
            layout.write(path)
        except (UserError, OSError):
            return None
        side, model = str(self.config.resolution), self.config.model
        flags = {
            "pretrained_model_name_or_path": model.pretrained_model_name_or_path,
            **({"base_parts": model.base_parts} if model.base_parts else {}),
            "lora_ckpt_path": str(folder),
            "seg_mask_path": str(path),
            "output_path": str(folder.parent / "images"),
            **({"height": side, "width": side} if self.config.data.aspect == "stretch" else {}),
            "num_inference_steps": str(model.num_inference_steps),
        }
        words = (word for name, value in flags.items() for word in (f"--{name}", value))
        return shlex.join(["python", "infer.py", *words])

    def _first(self) -> int:
        """Return the number of the first sample that can be used."""
        return int(self.data.counts.usable.argmax())

    def save(self, folder: Path, step: int) -> None:
        """Write both adapters and their card."""
        save_adapters(self.pipeline.transformer, folder, build.adapter_card(self.config, step))


def _longest(train: TrainingSet) -> int:
    """Count the tokens of the longest sample."""
    return int(train.lengths[train.counts.usable].sum(axis=1).max())


def write_images(images: Mapping[int, Image.Image], layouts: Sequence[Layout], folder: Path) -> list[Image.Image]:
    """Write NNN.png, and panels/NNN.png with contour, overlay and legend beside it.

    Return the panels in order.
    """
    panels = {number: panel(layouts[number], image) for number, image in sorted(images.items())}
    for place, pictures in ((folder, images), (folder / "panels", panels)):
        for number, picture in pictures.items():
            with atomic_write(place / f"{number:03d}.png") as temporary:
                picture.save(temporary)
    return list(panels.values())


@contextmanager
def _on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the module to `device` inside this context, and back after it."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)
