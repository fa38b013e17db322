"""Provide sizes, timing, random layouts and output for the GPU checks."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.clock import timed
from benchmarks.scenes import PATCH, Entities, tokens_of
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout


@dataclass(frozen=True)
class Run:
    """The device and the size of the checks.

    side     side of the image in pixels
    text     upper limits for random numbers of tokens: of the global caption and of a region's caption
    seconds  time after which `oracle` starts no further comparison
    """

    size: str
    device: str
    heads: int
    head_dim: int
    side: int
    text: tuple[int, int]
    seconds: float
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, size: str, device: str, seconds: float = 100) -> Run:
        """Return FLUX.1's size ("flux"), or one that a CPU computes in seconds ("tiny")."""
        heads, head_dim, side, text = {"flux": (24, 128, 1024, (80, 20)), "tiny": (2, 16, 128, (8, 4))}[size]
        return cls(size, device, heads, head_dim, side, text, seconds)

    @property
    def is_full(self) -> bool:
        """Tell whether this is FLUX.1's size."""
        return self.size == "flux"


def run_check(check: Callable[[Run], None], on: Run) -> int:
    """Run one check and print how long it took; return 1 if it failed, else 0."""
    began, failed = time.perf_counter(), 0
    try:
        check(on)
    except Exception:  # a failed check must not stop the others
        failed = 1
        print(check.__name__, "FAILED", traceback.format_exc()[-1500:], flush=True)
    if on.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    say(check.__name__, took_s=round(time.perf_counter() - began, 1))
    return failed


def say(name: str, **values: object) -> None:
    """Print a line `name key=value ...`."""
    print(name, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()), flush=True)


def once(on: Run, work: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    return timed(work, on.device) * 1e3


def ms(on: Run, work: Callable[[], object], rounds: int = 5, warm: int = 2) -> float:
    """Return the median milliseconds of `rounds` calls, after `warm` calls that are not timed."""
    for _ in range(warm):
        work()
    return statistics.median(once(on, work) for _ in range(rounds))


@contextlib.contextmanager
def cudnn(enabled: bool) -> Iterator[None]:
    """Allow or forbid cuDNN's attention kernel inside the context."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def resident_mib() -> float:
    """Return the MiB of host memory that this process holds (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def random_layout(
    on: Run,
    rng: np.random.Generator,
    n: int,
    batch: int = 1,
    settings: ConditionSettings | None = None,
    side: int | None = None,
) -> tuple[TokenLayout, ConditionSettings]:
    """Draw n overlapping ellipses per sample, with captions of random length."""
    settings, side = settings or ConditionSettings("hard", (0, 0), cond_scale_factor=2), side or on.side
    samples = [_random_entities(on, rng, n, side) for _ in range(batch)]
    return tokens_of(samples, side, PATCH, settings), settings


def _random_entities(on: Run, rng: np.random.Generator, n: int, side: int) -> Entities:
    """Draw the masks and text lengths of one sample."""
    y, x = np.mgrid[:side, :side]
    masks = np.zeros((n, side, side), bool)
    for mask in masks:
        (cy, cx), (ry, rx) = rng.uniform(0, side, 2), rng.uniform(side * 0.08, side * 0.25, 2)
        mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    lengths = (int(rng.integers(4, on.text[0])), *(int(length) for length in rng.integers(3, on.text[1] + 4, n)))
    return masks, lengths


def qkv(on: Run, batch: int, length: int, grad: bool = False) -> list[torch.Tensor]:
    """Draw query, key and value, [batch, length, heads, head_dim] each."""
    made = torch.randn(3, batch, length, on.heads, on.head_dim, dtype=on.dtype, device=on.device)
    return [x.clone().requires_grad_(grad) for x in made]
