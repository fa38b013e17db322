"""Number the phrases and the <SEG> tokens of token ids, and average states over them.

A phrase is marked <p> .. </p>; the marks belong to it. -1 stands where there is no phrase, and no <SEG>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marks:
    """The numbers of the tokens <SEG>, <p> and </p>."""

    seg: int
    start: int
    end: int

    def phrase_numbers(self, ids: Sequence[int]) -> list[int] | None:
        """Number the phrases of token ids from 0; None if there is no mark at all.

        The k-th <p> belongs to the k-th </p>, however they are nested; those left over are in no phrase. Later phrases
        win where two overlap.
        """
        starts = [place for place, one in enumerate(ids) if one == self.start]
        ends = [place for place, one in enumerate(ids) if one == self.end]
        if not starts and not ends:
            return None
        numbers = [-1] * len(ids)
        for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
            if end >= start:
                numbers[start : end + 1] = [number] * (end + 1 - start)
        return numbers

    def seg_numbers(self, ids: Sequence[int]) -> list[int]:
        """Number the <SEG> tokens of token ids from 0."""
        count, numbers = 0, []
        for one in ids:
            numbers.append(count if one == self.seg else -1)
            count += one == self.seg
        return numbers


def means(states: Tensor, numbers: Tensor) -> Tensor:
    """Average states [L, D] over the places [L] of each number that occurs, in ascending order: [N, D]."""
    found = numbers[numbers >= 0].unique()
    if not len(found):
        return states.new_zeros(0, states.shape[-1])
    return torch.stack([states[places].mean(0) for places in numbers[None] == found[:, None]])
