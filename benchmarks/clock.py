"""How benchmarks take time: what they compare runs in turn, so that a busy machine is busy for all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of all threads; for a machine that others use


def timed(work: Callable[[], object], device: str | torch.device, clock: str = "wall") -> float:
    """Seconds that `work` takes, on an accelerator until it has finished there."""
    synchronise(device)
    began = CLOCKS[clock]()
    work()
    synchronise(device)
    return CLOCKS[clock]() - began


def synchronise(device: str | torch.device) -> None:
    """Wait until a CUDA device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of every work in every round, after a round that does not count; each round starts with another one."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(1 + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed(works[name], device, clock))
    return {name: each[1:] for name, each in seconds.items()}
