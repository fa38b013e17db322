"""Several processes make the images of one run, each its share, with nothing to wait for each other about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from seg2any.system.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """Process `index` of `count`, `local` of `local_count` on its machine; as torchrun and accelerate's launcher say,
    else the only one."""

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    is_on_cpu: bool = False  # by order of the launcher

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Process:
        """Raises UserError for a launcher that contradicts itself."""
        index, count = _whole(environment, "RANK", 0), _whole(environment, "WORLD_SIZE", 1)
        if not 0 <= index < count:
            raise UserError(f"RANK {index} of WORLD_SIZE {count}: there is no such process; check the launcher")
        local, local_count = _whole(environment, "LOCAL_RANK", index), _whole(environment, "LOCAL_WORLD_SIZE", count)
        return cls(index, count, local, local_count, environment.get("ACCELERATE_USE_CPU", "").lower() == "true")

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.index == 0

    def __str__(self) -> str:
        """How its messages begin; one that is alone does not say so."""
        return f"process {self.index + 1} of {self.count}: " if self.count > 1 else ""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every item is in the share of exactly one process."""
        return items[self.index :: self.count]

    def device_name(self, asked: str | None) -> str | None:
        """--device, or None, for this process: with several, each has a GPU of its own.

        Raises UserError if there are too few, or if one of them is asked for by number.
        """
        if self.count == 1:
            return asked
        if asked is None and self.is_on_cpu:
            return "cpu"
        if asked is None and not torch.cuda.is_available():
            return None
        if asked is not None and asked.startswith("cuda:"):
            raise UserError(f"--device {asked}: all {self.count} processes would share it; leave --device out")
        if asked in (None, "cuda") and self.local >= (n_devices := torch.cuda.device_count()):
            raise UserError(f"{self.local_count} processes, but {n_devices} GPUs here; start one process for each GPU")
        return f"cuda:{self.local}" if asked in (None, "cuda") else asked


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise UserError(f"{name} is {environment[name]!r} and no number; check the launcher") from None
