"""Compare the attention of chosen blocks with the masks of a layout (Seg4Diff, arXiv 2509.18096).

Masks lie on the token grid, with plain attention as the share of each token that a region covers. Scores are those
before the mask of regions and the softmax: with regions kept apart, weights would repeat the masks that they are given.

Shape suffixes: B batch, n phrases, I image tokens, h w token grid, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.bases.base import Base, Condition
from seg2any.diffusion.prepare import EncodedLayout
from seg2any.segment.mask_head import MaskHead
from seg2any.segment.phrase_scores import Columns, PhraseScores
from seg2any.segment.phrases import columns_in
from seg2any.system.errors import UserError
from seg2any.training.mask_losses import mask_loss, matched_loss
from seg2any.training.named_regions import joined_names
from seg2any.training.samples import EncodedSample
from seg2any.training.tasks.flow_matching import Velocity

LEAST_SHARE, MOST_MASKS = 0.005, 32  # masks to pair with maps, as published: of more than this area, the largest ones


@dataclass(frozen=True, eq=False)
class Target:
    """The masks of a sample, float32 [n, h, w] in 0..1, and the text tokens of their names.

    columns  of each mask; for matched pairing of each text token, whatever it says
    """

    columns: Columns
    masks: Tensor


class Tapped(nn.Module):
    """The network with a tap in chosen blocks, and the head, if there is one: the module that DDP wraps."""

    def __init__(self, velocity: Velocity, blocks: Sequence[int], head: MaskHead | None):
        super().__init__()
        self.velocity, self.blocks, self.head = velocity, tuple(blocks), head

    def forward(
        self, x: Tensor, s: Tensor, condition: Condition, columns: Sequence[Columns]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the velocity [B, I, D], and maps of every sample in every block.

        Maps are [n, heads, h, w], with a head [n, h, w] in place of those of all blocks.
        """
        tap = PhraseScores(self.blocks, columns)
        prediction = self.predict(x, s, condition, tap)
        grid = grid_of(condition.tokens)
        maps = [[one.unflatten(2, grid) for one in block] for block in tap.of_blocks()]
        if self.head is not None:
            maps = [[self.head(torch.cat(of_blocks, 1)) for of_blocks in zip(*maps, strict=True)]]
        return prediction, maps

    def predict(self, x: Tensor, s: Tensor, condition: Condition, tap: PhraseScores) -> Tensor:
        """Run the whole network."""
        return self.velocity(x, s, condition, tap)


class TappedAlone(Tapped):
    """A `Tapped` network that stops in the last block that learns masks: its velocity is 0 everywhere."""

    def predict(self, x: Tensor, s: Tensor, condition: Condition, tap: PhraseScores) -> Tensor:
        """Run the network as far as the tap needs; every trained parameter still gets a gradient, for DDP."""
        last = max(self.blocks)

        def stopping(block: int, *given: object) -> None:
            tap(block, *given)
            if block == last:
                raise _Reached

        try:
            self.velocity(x, s, condition, stopping)
        except _Reached:
            trained = [p.sum() for p in self.velocity.parameters() if p.requires_grad]
            return torch.zeros_like(x) + 0 * torch.stack(trained).sum().to(x.device)
        raise UserError(f"attention of block {last}: the network did not run it; choose another block")


class _Reached(Exception):  # noqa: N818 - no error: it ends a pass
    """The last block that learns masks has been reached."""


def grid_of(tokens: TokenLayout) -> tuple[int, int]:
    """Return (h, w) of the image tokens."""
    last = tokens.positions[0, tokens.n_text : tokens.n_text + tokens.n_image, 1:].amax(0)
    return int(last[0]) + 1, int(last[1]) + 1


def spans_of_layout(tokens: TokenLayout, row: int, count: int) -> list[list[int]]:
    """List the text tokens of each of `count` regions of a sample, from the token layout."""
    entities = tokens.entities[row, : tokens.n_text]
    return [torch.nonzero(entities == 1 << number).flatten().tolist() for number in range(count)]


def spans_of_names(sample: EncodedSample, background: str | None, tokenizer: object, room: int) -> Target:
    """Find the tokens of the names of regions and background in the joined caption, and each name's mask.

    room  text tokens that are read; a name that lies behind them is left out

    Regions of one name count together.
    """
    captions, drawn = sample.captions.regions, shares_of(sample.layout)
    names, text = joined_names(captions, background)
    found = columns_in(text, names, tokenizer)
    if found is None:
        raise UserError(f"captions {', '.join(names)}: are not found in the text that joins them; write them otherwise")
    columns, masks = [], []
    for name, places in zip(names, found, strict=True):
        if any(place >= room for place in places):
            continue
        own = torch.tensor([one == name for one in captions], dtype=torch.bool)
        masks.append((drawn[own].sum(0) if own.any() else 1 - drawn.sum(0)).clamp(0, 1))
        columns.append(places)
    return Target(columns, torch.stack(masks) if masks else drawn[:0])


def shares_of(layout: EncodedLayout) -> Tensor:
    """Return the share of each token that each region covers, float32 [N, h, w]; 0 or 1 where only masks are known."""
    return torch.from_numpy(layout.masks if layout.coverage is None else layout.coverage).float()


def every_token(tokens: TokenLayout, row: int, masks: np.ndarray) -> Target:
    """Offer every text token but padding rows, for the masks that are large enough, to be paired at the least cost."""
    places = torch.nonzero(tokens.kind[row, : tokens.n_text] != Kind.TEXT_PAD).flatten().tolist()
    drawn = torch.from_numpy(masks).float()
    shares = drawn.mean((1, 2))
    order = [number for number in shares.argsort(descending=True).tolist() if shares[number] > LEAST_SHARE]
    return Target([[place] for place in places], drawn[order[:MOST_MASKS]])


@dataclass(frozen=True)
class AlignmentLoss:
    """The mask loss of a batch.

    pairing     spans or matched, as in the config
    background  name of what is no region, for plain attention
    focal       a key of `seg2any.training.mask_losses.FOCAL`
    """

    pairing: str
    background: str | None
    focal: str
    base: Base

    def targets(self, samples: Sequence[EncodedSample], condition: Condition) -> list[Target]:
        """Find the masks and text tokens of every sample."""
        tokens, settings = condition.tokens, condition.settings
        if self.pairing == "matched":
            return [every_token(tokens, row, sample.layout.masks) for row, sample in enumerate(samples)]
        if settings.is_plain:
            tokenizer, room = self.base.tokenizer, settings.max_sequence_length
            return [spans_of_names(sample, self.background, tokenizer, room) for sample in samples]
        found = []
        for row, sample in enumerate(samples):
            masks = torch.from_numpy(sample.layout.masks).float()
            found.append(Target(spans_of_layout(tokens, row, len(masks)), masks))
        return found

    def __call__(self, maps: Sequence[Sequence[Tensor]], targets: Sequence[Target]) -> Tensor:
        """Average the loss of the blocks' maps of every sample, as `Tapped.forward` returns them; a scalar."""
        return torch.stack([self._of_block(block, targets) for block in maps]).mean()

    def _of_block(self, maps: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        masks = [target.masks.to(maps[0].device) for target in targets]
        if self.pairing == "matched":
            return matched_loss([one.flatten(0, 1) for one in maps], masks, self.focal).total
        logits = torch.cat([one.mean(1) if one.ndim == 4 else one for one in maps])
        return mask_loss(logits, torch.cat(masks), max(1, len(logits)), self.focal).total
