"""Which samples form which batch: shuffled, similar lengths together, resumable from a number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

WINDOW = 32  # batches of every rank that are sorted by length together


class LengthBatches:
    """An endless iterator over batches of indices, so that one batch holds samples of similar length.

    Every epoch is a new permutation; windows of it are sorted by length and cut into batches, the batches shuffled.
    Batches of consecutive positions go to consecutive ranks. The tail of an epoch that fills no batch of every rank
    is left to the next epochs; a data set smaller than that repeats samples instead.

    lengths     tokens of each sample
    batch_size  per rank

    The state is one number: how many batches this rank has handed out.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0, rank: int = 0, world: int = 1):
        self.lengths = torch.as_tensor(lengths)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.position = 0
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Of one rank."""
        return max(1, len(self.lengths) // (self.batch_size * self.world))

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of all ranks of one epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        n_batches = self.batches_per_epoch * self.world
        needed = n_batches * self.batch_size
        order = torch.randperm(len(self.lengths), generator=generator)
        order = order.repeat(-(-needed // len(order)))[:needed]
        groups: list[torch.Tensor] = []
        for window in order.split(WINDOW * self.world * self.batch_size):
            window = window[self.lengths[window].argsort(stable=True)]
            # One group is the same moment on every rank: similar lengths, so that no rank waits for another.
            groups += window.split(self.world * self.batch_size)
        shuffled = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
        return [batch.tolist() for group in shuffled for batch in group.split(self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        number, index = divmod(self.position, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.epoch(number))
        self.position += 1
        return self._epoch[1][index * self.world + self.rank]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def published_length_class(cond_tokens: int, text_tokens: int) -> int:
    """The published code batches samples of one class: 50 tokens wide for condition tokens, and for text tokens."""
    return cond_tokens // 50 + text_tokens // 50 * 1_000_000
