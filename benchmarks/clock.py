"""Time work in turn, so that a busy machine slows everything that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: processor time of all threads


@dataclass(frozen=True)
class Ratio:
    """The times of one work divided by those of another, round by round: median, least and most.

    Rounded to two decimals, because no machine repeats a time more closely.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float], others: Sequence[float]) -> Ratio:
        """Divide the times of two works that took turns."""
        each = [round(one / other, 2) for one, other in zip(seconds, others, strict=True)]
        return cls(round(statistics.median(each), 2), min(each), max(each))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}..{self.high:.2f}]"


def timed(work: Callable[[], object], device: str | torch.device, clock: str = "wall") -> float:
    """Return the seconds that `work` takes; on CUDA until the device has finished it."""
    synchronise(device)
    began = CLOCKS[clock]()
    work()
    synchronise(device)
    return CLOCKS[clock]() - began


def synchronise(device: str | torch.device) -> None:
    """Wait until a CUDA device has finished all its kernels; other devices need no waiting."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device, clock: str = "wall"
) -> dict[str, list[float]]:
    """Return the seconds of every work in every round; each round starts with another work.

    One more round runs first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(1 + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed(works[name], device, clock))
    return {name: each[1:] for name, each in seconds.items()}
