"""Define `Task`: all that the trainer knows of a network, its data, loss and files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from seg2any.system.processes import ALONE, Process

if TYPE_CHECKING:
    from seg2any.training.elastic import Shares
    from seg2any.training.strategy import Strategy

SAMPLE, BATCH = 0, 1  # keep the two kinds of seeds apart


class Sample(Protocol):
    """One training sample, as `Task.loss` takes it."""

    @property
    def lengths(self) -> Sequence[int]:
        """Count its tokens without padding, stream by stream.

        Samples of one batch are padded stream by stream.
        """


@dataclass(frozen=True)
class Batch:
    """The samples of one step on this process.

    places   positions in the planned batch: all of them, unless unusable samples were left out
    indices  numbers of the samples in the data set
    keys     their names, for messages
    empty    no sample of the planned batch could be used: the one here stands in, so that this process computes what
             the others wait for; it must not count
    """

    places: list[int]
    indices: list[int]
    keys: list[str]
    samples: Sequence[Sample]
    empty: bool = False


class Order(Protocol):
    """The order of training, endless; a checkpoint keeps its state."""

    samples_per_epoch: int  # of all processes

    def among_first(self, count: int) -> np.ndarray:
        """Return which samples are among the first `count` of all processes: int64, ascending, each once."""

    def own_until(self, count: int) -> np.ndarray:
        """Return which samples this process takes from here up to the first `count` of all processes, likewise."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples that the steps of a run read, by their numbers in the data set: int64, ascending, each once.

    all  of all processes, of past steps too: a resumed run makes the same caches
    own  of this process, from its place on
    """

    all: np.ndarray
    own: np.ndarray


class TrainingData(Protocol):
    """The samples that a task trains on."""

    def sampler(self, kind: str, batch_size: int, seed: int, process: Process, accumulation: int) -> Order:
        """Order the samples for this process, which takes `accumulation` batches in a step.

        `kind` is trainer.sampler of the config.
        """

    def batches(self, sampler: Order) -> Generator[Batch]:
        """Yield batches from the sampler's position on, endlessly, and move that position with each.

        The run closes the generator after its last step.
        """


class Task(Protocol):
    """A network, its data, its loss, its validation and its files.

    The trainer calls `identity`, then `load`; everything else, `network` and `data` included, comes after `load`.
    Every process calls all methods but `save` at the same time.
    """

    network: nn.Module  # the loss passes through it once per micro-step; DDP wraps it
    data: TrainingData

    def identity(self) -> Mapping[str, object]:
        """Fingerprint by config key what a resumed run shares with the first; load no weights."""

    def load(self, strategy: Strategy, saved: Path | None, planned: Callable[[TrainingData], Plan]) -> None:
        """Load the network, onto the strategy's device, and the data.

        saved    folder of the checkpoint to resume, None for a new run; the trainer loads the parameters themselves
        planned  the samples that the run reads; a cache needs no others
        """

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Name the parameters to train: adapters, a head, a whole network.

        Every loss must give each of them a gradient, or DDP waits for ever.
        """

    def rates(self) -> Mapping[str, float]:
        """Return factors of the learning rate of parameters whose names begin so; a task without this has one rate."""

    def loss(self, network: nn.Module, samples: Sequence[Any], generators: Sequence[torch.Generator]) -> Tensor:
        """Compute the loss of a batch, a scalar.

        network     `self.network`, or the launcher's wrapper of it
        generators  one for each sample, to draw all its random numbers from
        """

    def predicted_bytes(self, shares: Shares) -> int:
        """Estimate the most memory of the device that this process takes; after `load`."""

    def validation_losses(self) -> Mapping[str, float]:
        """Measure the network as it is, over all processes together; empty without validation data."""

    def validation_images(self, folder: Path) -> Sequence[Image.Image]:
        """Write images that show what the network does to `folder`; return them on the main process."""

    def facts(self, shares: Shares) -> Mapping[str, str]:
        """Describe by name what the first lines of a run say of the network, its memory and its caches."""

    def usage(self, folder: Path) -> str | None:
        """Return the command line that uses what `save` wrote to `folder`; only the main process calls this."""

    def save(self, folder: Path, step: int) -> None:
        """Write the trained parameters as users need them; only the main process calls this."""


@dataclass(frozen=True)
class Randomness:
    """Seeds of every sample by its place in the run, whichever process computes it.

    Samples are counted through the run, over steps, accumulation, processes and the batch, in this order. Sample n
    draws from a generator of its own, seeded with (seed, n). So a resumed run draws what the uninterrupted one would
    have drawn, no two samples share noise, and 2 processes x 4, 2 accumulated x 4 and 1 x 8 samples make the same
    update. Dropout layers draw for a whole batch: the first two make the same update with them, too.
    """

    seed: int
    batch_size: int
    process: Process = ALONE

    def generators(self, micro_step: int) -> list[torch.Generator]:
        """Seed one generator for each sample of this process's batch number `micro_step`."""
        first = self._batch(micro_step) * self.batch_size
        return [torch.Generator().manual_seed(self._seed(SAMPLE, first + i)) for i in range(self.batch_size)]

    def seed_layers(self, micro_step: int) -> None:
        """Seed torch's global generator, from which dropout layers draw for a whole batch."""
        torch.manual_seed(self._seed(BATCH, self._batch(micro_step), 0))

    def _batch(self, micro_step: int) -> int:
        """Return this process's batch number `micro_step` as a number among the batches of all processes."""
        return micro_step * self.process.count + self.process.index

    def _seed(self, *key: int) -> int:
        return int(np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0] >> 1)
