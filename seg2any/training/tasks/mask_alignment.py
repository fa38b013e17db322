"""Train adapters whose attention follows masks: generation with a term for the maps of chosen blocks (Seg4Diff).

With plain attention (model.attention_mask_method none) a sample's text joins the names of its regions, as the probe's
does, and their tokens are found by offsets. With regional attention the token layout says where each caption lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from seg2any.bases.base import Base, Condition
from seg2any.segment.mask_head import Learned, MaskHead, save_learned
from seg2any.system.errors import UserError
from seg2any.training import build, dry_run
from seg2any.training.config import Config
from seg2any.training.named_regions import NamedRegions
from seg2any.training.open_data import Planned, RawData, open_data
from seg2any.training.samples import EncodedSample
from seg2any.training.strategy import Strategy
from seg2any.training.tasks.alignment_loss import AlignmentLoss, Tapped, TappedAlone
from seg2any.training.tasks.generation import Generation

HEAD = "mask_head."  # before the names of the CNN's parameters


def describe(config: Config) -> str:
    """Describe the run. Raises UserError for everything that the run itself would refuse."""
    learned_blocks(config, build.weightless(config).base)
    return dry_run.describe(config)


def learned_blocks(config: Config, base: Base) -> tuple[int, ...]:
    """Return the blocks that learn masks. Raises UserError for blocks that the model lacks, or that nobody knows."""
    blocks, count = config.mask_alignment.blocks, base.geometry.n_blocks
    if blocks is None and base.probing is None:
        raise UserError("mask_alignment.blocks: nobody has measured this model; give numbers, such as [3]")
    blocks = tuple(dict.fromkeys(base.probing.blocks if blocks is None else blocks))
    if wrong := [block for block in blocks if block >= count]:
        raise UserError(f"mask_alignment.blocks: {wrong[0]} is not possible; the model has the blocks 0 to {count - 1}")
    return blocks


class MaskAlignment(Generation):
    """The task of a run that trains adapters, and perhaps a CNN, on flow and masks.

    See `seg2any.training.task.Task`.
    """

    network: Tapped

    @cached_property
    def raw(self) -> RawData:
        """The data sets as they are on the disk, their captions replaced where the attention is plain."""
        found, options = open_data(self.config), self.config.mask_alignment
        if not self.settings.is_plain or options.pairing == "matched":
            return found
        val = None if found.val is None else NamedRegions(found.val, options.background)
        return RawData(NamedRegions(found.train, options.background), val)

    def load(self, strategy: Strategy, saved: Path | None, planned: Planned) -> None:
        """Load FLUX and its adapters, and make the CNN if one is wanted."""
        super().load(strategy, saved, planned)
        base, options = self.pipeline.base, self.config.mask_alignment
        blocks = learned_blocks(self.config, base)
        n_maps = len(blocks) * base.geometry.n_heads if options.target == "head" else 0
        background = options.background if self.settings.is_plain and options.pairing == "spans" else None
        tokens = self.settings.max_sequence_length if self.settings.is_plain else None
        self.learned = Learned(blocks, background, n_maps, self.objective.weighting.median, tokens)
        self.alignment = AlignmentLoss(options.pairing, options.background, options.focal, base)
        tapped = Tapped if options.flow_weight else TappedAlone
        self.network = tapped(self.network, blocks, MaskHead(n_maps).to(strategy.device) if n_maps else None)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name the adapters' parameters as in the transformer, and those of the CNN."""
        head = self.network.head
        of_head = {} if head is None else {f"{HEAD}{name}": p for name, p in head.named_parameters()}
        return {**super().trainable(), **of_head}

    def loss(
        self, network: nn.Module, samples: Sequence[EncodedSample], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Add the flow loss and the mask loss of a batch, each by its weight, from one pass."""
        options, found = self.config.mask_alignment, []

        def predict(x: Tensor, s: Tensor, condition: Condition) -> Tensor:
            targets = self.alignment.targets(samples, condition)
            prediction, maps = network(x, s, condition, [target.columns for target in targets])
            found.append(self.alignment(maps, targets))
            return prediction

        flow = self.objective(predict, samples, generators)  # at weight 0 of zeros: it only draws noise
        return options.flow_weight * flow + options.weight * found[0]

    def validation_losses(self) -> Mapping[str, float]:
        """Measure the flow loss at fixed noise."""
        with self._untapped():
            return super().validation_losses()

    @contextmanager
    def _untapped(self) -> Iterator[None]:
        tapped, self.network = self.network, self.network.velocity
        try:
            yield
        finally:
            self.network = tapped

    def save(self, folder: Path, step: int) -> None:
        """Write the adapters, and where and with what CNN they learned masks."""
        super().save(folder, step)
        save_learned(folder, self.learned, self.network.head)
