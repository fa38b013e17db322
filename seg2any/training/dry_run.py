"""Describe a run without loading weights: config, parameters, tokens per sample, memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from seg2any.diffusion.prepare import size_in_tokens
from seg2any.generate.memory_estimate import GIB
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.training import build
from seg2any.training.accelerator import make_accelerator
from seg2any.training.config import Config
from seg2any.training.early import check_path
from seg2any.training.elastic import Shares
from seg2any.training.memory import Launch, encoders_of, estimate
from seg2any.training.open_data import open_data
from seg2any.training.optimizer import make_schedule, number_of_steps
from seg2any.training.strategy import make_strategy
from seg2any.training.tasks.flow_matching import make_objective
from seg2any.training.token_counts import TokenCounts, count_some

DESCRIBED_SAMPLES = 64  # the most samples whose tokens are counted


def describe(config: Config) -> str:
    """Describe the run. Raises UserError for everything that the run itself would refuse."""
    strategy, settings = make_strategy(config, make_accelerator(config)), config.model.condition
    make_objective(config)
    check_path(config.resume_from_checkpoint)
    raw = open_data(config)
    pipeline = _pipeline_of(config)
    transformer, patch = pipeline.transformer, pipeline.base.geometry.pixels_per_token
    some = range(0, len(raw.train), -(-len(raw.train) // DESCRIBED_SAMPLES))
    counts = TokenCounts.of(count_some(raw.train, some, pipeline.base.tokenizer, patch, config), settings, patch)
    tokens = {"text": counts.text, "image": counts.image, "condition": counts.condition}

    lines = [config.to_yaml()]
    lines += [f"{name} parameters: {count:,}" for name, count in build.parameter_counts(transformer).items()]
    if useless := [name for name, side in build.narrowest_sides(transformer).items() if side < config.model.rank]:
        lines.append(f"model.rank {config.model.rank} is more than the width of {len(useless)} layers: {useless[0]}")
    for name, column in tokens.items():
        lines.append(f"{name} tokens per sample: {column.mean():.0f} on average, {column.max():.0f} at most")
    launch = Launch.of(strategy)
    longest = int(sum(tokens.values()).max())
    lines += table(estimate(config, transformer, longest, encoders_of(config, pipeline, raw.train), launch))
    shares = Shares.given(config, launch.processes)
    per_epoch = max(1, len(raw.train) // shares.samples)
    batches = per_epoch * shares.accumulation
    found = f"{len(raw.train):,} samples, {batches:,} batches per epoch and process"
    lines.append(f"{found}; counted in {len(some)} of them")
    steps = number_of_steps(config, per_epoch)
    make_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=1.0), steps)  # for its errors only
    lines.append(f"{steps:,} steps")
    lines.append(f"before step 1: {preparation(config, len(raw.train), steps * shares.samples)}")
    return "\n".join(lines)


def preparation(config: Config, samples: int, read: int) -> str:
    """Describe what is done before step 1; read: number of samples that all steps read, with repetitions."""
    options = config.trainer
    encoded = [
        *(["images", "contours"] if options.cache_latents else []),
        *(["captions"] if options.cache_text == "all" else []),
    ]
    counted = f"the tokens of {samples:,} samples are counted"
    if not encoded:
        return counted
    *others, last = encoded
    words = f"{', '.join(others)} and {last}" if others else last
    most = samples if options.cache == "all" else min(samples, read)
    known = f", but for those that {options.cache_dir} holds" if options.cache_dir else ""
    return f"{counted}, and {words} of up to {most:,} are encoded{known}"


def _pipeline_of(config: Config) -> Seg2AnyPipeline:
    """Build the run's networks with adapters on the meta device.

    Raises UserError for what does not suit them.
    """
    settings = config.model.condition
    pipeline = build.weightless(config)
    build.check_block_range(settings, pipeline.base.geometry.n_blocks)
    patch = pipeline.base.geometry.pixels_per_token
    if config.data.aspect == "stretch":
        size_in_tokens((config.resolution, config.resolution), patch, settings.cond_scale_factor)
    return pipeline


def table(rows: Mapping[str, int]) -> list[str]:
    """Format an estimate in GiB."""
    lines = [f"  {name:<17}{size / GIB:7.2f} GiB" for name, size in rows.items() if size]
    total = sum(rows.values()) / GIB
    return [
        "GPU memory per process, estimated (seg2any/training/memory.py):",
        *lines,
        f"  {'together':<17}{total:7.2f} GiB",
    ]
