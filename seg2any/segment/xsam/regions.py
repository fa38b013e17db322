"""Turn visual prompts, which are masks, into vectors, and choose the mask of every <region> of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS = 256  # pixels of a mask that are read, at most


def region_vectors(
    features: Tensor, masks: Tensor, points: int = POINTS, permutation: Callable[[int], Tensor] = torch.randperm
) -> Tensor:
    """Return the greatest value of each channel over the pixels of each mask: [N, D].

    features     [h * h, D] of a square grid, row by row
    masks        [N, H, W], none of them empty; of those with more pixels than `points`, so many are drawn
    permutation  draws an order of n numbers

    Raises ValueError for a mask without a pixel.
    """
    side = round(len(features) ** 0.5)
    grid = features.T.reshape(1, -1, side, side)
    size = torch.tensor(masks.shape[1:], device=masks.device, dtype=torch.float32)
    vectors = []
    for number, mask in enumerate(masks):
        places = mask.nonzero()
        if not len(places):
            raise ValueError(f"region {number}: its mask has no pixel")
        if len(places) > points:
            places = places[permutation(len(places))[:points].to(places.device)]
        xy = 2 * (places / size).flip(1) - 1  # a pixel's upper left corner, as published
        found = F.grid_sample(grid.float(), xy[None, None].to(grid.device), align_corners=True)
        vectors.append(found[0, :, 0].amax(1).to(features.dtype))
    return torch.stack(vectors) if vectors else features.new_zeros(0, features.shape[1])


@dataclass(frozen=True)
class Source:
    """The mask that a <region> shows: its picture and its number there, or None where no mask was left."""

    picture: int
    mask: int


def choose_sources(
    wanted: Sequence[Sequence[int]], present: Sequence[Sequence[int]], draw: Callable[[int], int] | None = None
) -> list[list[Source | None]]:
    """Choose the mask of every region of a batch, as published for training.

    wanted   categories of each picture's regions
    present  category of each mask of each picture
    draw     a number below n; default: torch's

    A region takes a mask of its category from any picture that no region has yet. Where there is none, it takes one
    whose category its own picture lacks, else none.
    """
    draw = draw or (lambda n: int(torch.randint(n, (1,))))
    masks = [(Source(p, m), label) for p, labels in enumerate(present) for m, label in enumerate(labels)]
    taken: set[Source] = set()

    def choose(own: Sequence[int], category: int) -> Source | None:
        same = [source for source, label in masks if label == category and source not in taken]
        if same:
            taken.add(chosen := same[draw(len(same))])
            return chosen
        foreign = [source for source, label in masks if label not in own]
        return foreign[draw(len(foreign))] if foreign else None

    return [[choose(own, category) for category in ask] for ask, own in zip(wanted, present, strict=True)]
