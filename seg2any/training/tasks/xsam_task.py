"""Hold what the two tasks of X-SAM share: data, files, validation, facts. The network is trained whole, no adapters.

A task has no velocity and no cache: there is no frozen network whose output could be kept.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from seg2any.data.catalog import data_set_name, open_data_set
from seg2any.data.words import Worded, Words, words_of
from seg2any.generate.memory_estimate import GIB
from seg2any.layout import Layout
from seg2any.layout.draw import panel
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.weights import folder_digest
from seg2any.training.config import Config
from seg2any.training.elastic import Shares
from seg2any.training.identity import CONTENT
from seg2any.training.set_losses import Share, alone
from seg2any.training.strategy import Strategy
from seg2any.training.task import TrainingData
from seg2any.training.tasks.xsam_data import Picture, WordSet
from seg2any.training.tasks.xsam_networks import ENCODERS, model_folder, trained

BYTES = 16  # of a trained parameter: itself, its gradient and two moments
FOLDER = "xsam"  # of a checkpoint


class XSamTask:
    """A task that trains a network of X-SAM; see `seg2any.training.task.Task`.

    Subclasses build the network, and compute the loss of a batch.
    """

    model: PreTrainedModel
    network: nn.Module
    strategy: Strategy

    def __init__(self, config: Config):
        self.config, self.options = config, config.xsam
        model_folder(config)

    @property
    def mix(self) -> Mapping[str, int]:
        """The number of times that an epoch asks an image in each way."""
        raise NotImplementedError

    def build(self, resumes: bool) -> nn.Module:
        """Set `model` and return the module around it that computes the loss's inputs."""
        raise NotImplementedError

    def batch_loss(
        self, network: nn.Module, samples: Sequence[Picture], generators: Sequence[torch.Generator], share: Share
    ) -> Tensor:
        """Compute the loss of a batch, a scalar; `share` averages divisors over processes."""
        raise NotImplementedError

    def found(self, worded: Worded) -> tuple[Tensor, list[str]]:
        """Find the regions of an image: masks bool [N, H, W] and their names."""
        raise NotImplementedError

    @cached_property
    def words(self) -> Words:
        """The images to train on."""
        return _opened(self.config, "train")

    @cached_property
    def val(self) -> WordSet | None:
        """The images to validate with."""
        section = self.config.data.val
        if data_set_name(section.type, section.target) is None:
            return None
        return self._set_of(_opened(self.config, "val"))

    @cached_property
    def data(self) -> TrainingData:
        """The samples to train on."""
        return self._set_of(self.words)

    def identity(self) -> dict[str, object]:
        """Fingerprint the training data and the folder of the model."""
        folder = model_folder(self.config)
        digest = hashlib.sha256((folder / "config.json").read_bytes() + folder_digest(folder).encode())
        return {CONTENT: self.words.fingerprint(), "xsam.model's content": digest.hexdigest()}

    def load(self, strategy: Strategy, saved: Path | None, planned: object) -> None:
        """Build the network, from nothing or from weights."""
        self.strategy = strategy
        transformers.logging.disable_progress_bar()  # the bar of the steps is enough
        self.network = self.build(resumes=saved is not None).to(strategy.device)
        trained(self.model)
        self.network.train()
        if self.config.trainer.gradient_checkpointing:
            self._checkpoint_layers()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name every parameter that a loss reaches, the image encoders last."""
        return trained(self.model)

    def rates(self) -> dict[str, float]:
        """Return the relative rates of parameters whose names begin so."""
        return dict.fromkeys(ENCODERS, self.options.encoder_rate)

    def loss(self, network: nn.Module, samples: Sequence[Picture], generators: Sequence[torch.Generator]) -> Tensor:
        """Compute the loss of a batch, with divisors of all processes."""
        return self.batch_loss(network, samples, generators, self._shared)

    def predicted_bytes(self, shares: Shares) -> int:
        """Estimate the memory of parameters, gradients and moments; activations are not counted."""
        return BYTES * sum(parameter.numel() for parameter in self.model.parameters())

    def validation_losses(self) -> Mapping[str, float]:
        """Average the loss over validation samples, each with draws of its own, in all and by the way of asking."""
        if self.val is None:
            return {}
        numbers = range(min(self.config.trainer.num_validation_samples, len(self.val)))
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for number in self.strategy.validation_process.share(numbers):
            picture = self.val.usable(number)
            if picture is None:
                continue
            loss = self.batch_loss(self.network, [picture], [torch.Generator().manual_seed(number)], alone)
            totals[picture.kind][0] += loss.item()
            totals[picture.kind][1] += 1
        sums = torch.tensor([totals[kind] for kind in self.mix], device=self.strategy.device)
        sums = self.strategy.accelerator.reduce(sums).cpu()
        named = {"val_loss": (sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1)).item()}
        for kind, (total, count) in zip(self.mix, sums.tolist(), strict=True):
            named |= {f"val_loss_{kind}": total / count} if count else {}
        return named

    def validation_images(self, folder: Path) -> list[Image.Image]:
        """Draw the regions found in the first validation images, on the main process."""
        if self.val is None or not self.strategy.accelerator.is_main_process:
            return []
        panels = []
        for number in range(min(self.config.trainer.num_validation_images, len(self.val.words))):
            worded = self.val.words[number]
            masks, names = self.found(worded)
            if not len(names):
                masks, names = torch.zeros(1, *worded.image.shape[:2], dtype=torch.bool), ["nothing was found"]
            layout = Layout(masks.numpy(), tuple(names), overlap="share")
            panels.append(panel(layout, Image.fromarray(worded.image)))
            with atomic_write(folder / f"{number:03d}.png") as temporary:
                panels[-1].save(temporary)
        return panels

    def facts(self, shares: Shares) -> dict[str, str]:
        """Describe memory and the ways of asking."""
        ways = ", ".join(f"{count} x {kind}" for kind, count in self.mix.items())
        return {
            "memory": f"{self.predicted_bytes(shares) / GIB:.1f} GiB of weights and moments, and activations",
            "each image": ways,
        }

    def usage(self, folder: Path) -> str | None:
        """Return None: a model is used by another program of this package, for which see the docs."""
        return None

    def save(self, folder: Path, step: int) -> None:
        """Write the model as `from_pretrained` reads it."""
        self.model.save_pretrained(folder / FOLDER)

    def _set_of(self, words: Words) -> WordSet:
        sam = self.sam
        tokens = (sam.image_size // sam.patch_size) ** 2
        return WordSet(words, self.mix, tokens, self.config.data.on_error == "skip")

    @property
    def sam(self):
        """The configuration of SAM's encoder."""
        return self.model.config.sam_config

    def _shared(self, number: Tensor) -> Tensor:
        if self.strategy.process.count == 1:
            return number
        return self.strategy.accelerator.reduce(number, "mean")

    def _checkpoint_layers(self) -> None:
        """Recompute activations in the backward pass where transformers can."""
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
                module.gradient_checkpointing_enable({"use_reentrant": False})


def _opened(config: Config, side: str) -> Words:
    section = getattr(config.data, side)
    name = data_set_name(section.type, section.target)
    if name is None:
        raise UserError(f"data.{side}.type: no data set chosen; for example --data.{side}.type=shapes")
    return words_of(open_data_set(name, section.params, config.data.on_error))


def describe(config: Config) -> str:
    """Describe a run of a task of X-SAM. Raises UserError."""
    from seg2any.training.tasks.choose import make_task

    task = make_task(config)
    folder = model_folder(config)
    ways = ", ".join(f"{count} x {kind}" for kind, count in task.mix.items())
    return "\n".join([config.to_yaml(), f"model: {folder}", f"{len(task.words):,} images, each as {ways}"])
