"""Measure training steps of all 57 blocks: samples per second, real and estimated memory."""

from __future__ import annotations

import torch

from benchmarks.gpu.measure import Run
from benchmarks.step_schemes import SIZES
from benchmarks.train_sizes import ROWS, SIDES, measure_row, table

ROUNDS = 3


def train(on: Run) -> None:
    """Measure training with bf16 weights, published and ours: samples/s, real and estimated GiB."""
    _train(on, [row for row in ROWS if "nf4" not in row.name])


def train_nf4(on: Run) -> None:
    """Measure our training with nf4 weights: samples/s, real and estimated GiB."""
    _train(on, [row for row in ROWS if "nf4" in row.name])


def _train(on: Run, rows: list) -> None:
    name, found = "flux-dev" if on.is_full else "tiny", []
    for row in rows:
        found.append(measure_row(row, SIZES[name], SIDES[name], ROUNDS, torch.device(on.device)))
        print(table(found), flush=True)


CHECKS = (train, train_nf4)
