"""Share the samples of a step between processes, also if a run resumes on another number of them.

A step takes `train_batch_size` x `gradient_accumulation_steps` x processes samples. A resumed run keeps this product:
with another number of processes each accumulates more or fewer batches, and takes smaller ones if that is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seg2any.system.errors import UserError
from seg2any.training.config import Config

BATCH, ACCUMULATION = "trainer.train_batch_size", "trainer.gradient_accumulation_steps"
PROCESSES = "number of processes"
SAMPLES_OF_A_STEP = {BATCH, ACCUMULATION, PROCESSES}  # only their product must not change in the middle of a run


@dataclass(frozen=True)
class Shares:
    """The samples of one step: `batch_size` x `accumulation` x `processes`."""

    batch_size: int
    accumulation: int
    processes: int

    @property
    def samples(self) -> int:
        """Number of samples of a step."""
        return self.batch_size * self.accumulation * self.processes

    @classmethod
    def given(cls, config: Config, processes: int) -> Shares:
        """Read the config."""
        return cls(config.trainer.train_batch_size, config.trainer.gradient_accumulation_steps, processes)

    @classmethod
    def saved(cls, identity: Mapping[str, Any]) -> Shares:
        """Read the identity of a checkpoint."""
        return cls(identity[BATCH], identity[ACCUMULATION], identity[PROCESSES])

    def to_dict(self) -> dict[str, int]:
        """Return the numbers as an identity keeps them."""
        return {BATCH: self.batch_size, ACCUMULATION: self.accumulation, PROCESSES: self.processes}

    def on(self, processes: int, group: int) -> Shares:
        """Share the samples among another number of processes, with batches no larger than now that divide `group`.

        Raises UserError if they cannot be shared.
        """
        own, rest = divmod(self.samples, processes)
        if rest:
            fitting = ", ".join(str(n) for n in range(1, self.samples + 1) if self.samples % n == 0)
            raise UserError(
                f"launcher: {processes} processes cannot share the {self.samples} samples of the checkpoint's steps; "
                f"start one of {fitting}"
            )
        batch_size = next(n for n in range(self.batch_size, 0, -1) if own % n == 0 and group % n == 0)
        return Shares(batch_size, own // batch_size, processes)


def shares_of(config: Config, saved: Shares | None, group: int, processes: int) -> tuple[Shares, Shares]:
    """Decide how a run shares the samples of a step.

    saved   those of the checkpoint to resume, None for a new run
    group   samples of a group of its sampler

    Returns (the shares to use, the shares to remember). The remembered ones are what config and launcher asked for
    together, so that every later start with this config keeps the samples of a step. Raises UserError if the config
    asks for another number of samples.
    """
    given = Shares.given(config, processes)
    if saved is None or given.samples == saved.samples:
        return given, given
    used = saved.on(processes, group)
    if replace(given, processes=saved.processes) != saved:
        raise UserError(
            f"{BATCH}: {given.batch_size} x {given.accumulation} accumulated x {processes} processes are "
            f"{given.samples} samples in a step, but {saved.samples} in the checkpoint; resume with "
            f"--{BATCH}={used.batch_size} --{ACCUMULATION}={used.accumulation}"
        )
    return used, saved


def with_shares(config: Config, shares: Shares) -> Config:
    """Return the config with the numbers of `shares`."""
    numbers = {"train_batch_size": shares.batch_size, "gradient_accumulation_steps": shares.accumulation}
    return replace(config, trainer=replace(config.trainer, **numbers))
