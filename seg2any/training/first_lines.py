"""Say at the start of a run what it does, and on what."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tqdm.auto import tqdm

from seg2any.training.elastic import Shares
from seg2any.training.strategy import Strategy

PRECISIONS = {"no": "fp32"}  # a strategy's precision -> its usual name


def say(facts: Mapping[str, str]) -> None:
    """Print a line for each fact."""
    for name, fact in facts.items():
        tqdm.write(f"{name:16}{fact}")


def launch_facts(strategy: Strategy, shares: Shares) -> dict[str, str]:
    """Describe processes, device and the samples of a step: all that is known before the model is loaded."""
    kind, threads = strategy.accelerator.distributed_type.value, torch.get_num_threads()
    precision = PRECISIONS.get(strategy.precision, strategy.precision)
    return {
        "processes": f"{shares.processes} ({kind}), threads of each: {threads}",
        "device": f"{strategy.device}, {precision}",
        "samples a step": (
            f"{shares.samples} = {shares.batch_size} per process x {shares.accumulation} accumulated x "
            f"{shares.processes} {'process' if shares.processes == 1 else 'processes'}"
        ),
    }


def step_facts(shares: Shares, samples_per_epoch: int, last_step: int, trained: int) -> dict[str, str]:
    """Describe steps and trained parameters."""
    per_epoch = samples_per_epoch // shares.samples
    return {
        "steps": f"{last_step:,}; an epoch has {per_epoch:,} steps, {samples_per_epoch:,} samples",
        "trained": f"{trained:,} parameters",
    }
