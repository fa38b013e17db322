"""Which random numbers a training sample gets: those of its place in the run, wherever it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.system.processes import ALONE, Process

SAMPLE, PROCESS = 0, 1  # keep the two kinds of seeds apart


@dataclass(frozen=True)
class Randomness:
    """Samples are counted through the run, over steps, accumulation, processes and the batch, in this order.

    Sample n draws its dropouts, latents, noise and noise level from a generator of its own, made of (seed, n). So a
    resumed run draws what the uninterrupted one would have drawn, no two samples share noise, and 2 processes x 4,
    2 accumulated x 4 and 1 x 8 samples make the same update of the same samples.
    """

    seed: int
    batch_size: int
    process: Process = ALONE

    def generators(self, micro_step: int) -> list[torch.Generator]:
        """One for each sample of this process's batch number `micro_step`."""
        first = (micro_step * self.process.count + self.process.index) * self.batch_size
        return [torch.Generator().manual_seed(self._seed(SAMPLE, first + i)) for i in range(self.batch_size)]

    def seed_layers(self, micro_step: int) -> None:
        """LoRA dropout draws from torch's global generator, for a whole batch at once: other draws per process."""
        torch.manual_seed(self._seed(PROCESS, micro_step, self.process.index))

    def _seed(self, *key: int) -> int:
        return int(np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0] >> 1)


def normal(shapes: Sequence[torch.Size], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal, one row of a batch from each generator."""
    return torch.stack([torch.randn(shape, generator=g) for shape, g in zip(shapes, generators, strict=True)])
