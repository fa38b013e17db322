"""What `--dry_run` prints: the resolved config, parameters, tokens per sample, GPU memory. It loads no weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from seg2any.adapters.files import add_adapters
from seg2any.attention.settings import check_blocks
from seg2any.bases.flux1.latents import pixels_per_token
from seg2any.bases.flux1.weightless import weightless_pipeline
from seg2any.data.dataset import ClosedSet
from seg2any.data.sampler import LengthBatches
from seg2any.diffusion.prepare import size_in_tokens
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.processes import Process
from seg2any.training import build
from seg2any.training.checkpoint import check_path
from seg2any.training.config import Config
from seg2any.training.counts import TokenCounts, count_some
from seg2any.training.memory import Encoders, Launch, estimate, table
from seg2any.training.parallel import is_deepspeed, make_accelerator, weight_dtype
from seg2any.training.run_data import open_data
from seg2any.training.shards import is_sharded

DESCRIBED_SAMPLES = 64  # at most so many are counted to tell a data set's numbers of tokens


def describe(config: Config) -> str:
    """Counts the tokens of a few samples. Raises UserError for what is wrong with the config or the data."""
    accelerator, settings = make_accelerator(config), config.model.condition
    build.objective(config, settings)  # this and the next two raise for what a run would refuse
    is_sharded(config, accelerator)
    check_path(config.resume_from_checkpoint)
    raw = open_data(config)
    with build.finding_model(config) as name:
        pipeline = weightless_pipeline(name)
    check_blocks(settings, build.n_blocks(pipeline.transformer))
    add_adapters(pipeline.transformer, config.model.rank, build.lora_alpha(config), 0.0, settings.is_use_cond_token)
    if config.data.aspect == "stretch":
        size_in_tokens((config.resolution, config.resolution), pipeline.vae, settings.cond_scale_factor)
    n_samples = len(raw.train)
    some = range(0, n_samples, -(-n_samples // DESCRIBED_SAMPLES))
    patch = pixels_per_token(pipeline.vae)
    counts = TokenCounts.of(count_some(raw.train, some, pipeline.tokenizer_2, patch, config), settings, patch)
    tokens = {"text": counts.text, "image": counts.image, "condition": counts.condition}

    lines = [config.to_yaml()]
    lines += [f"{name} parameters: {count:,}" for name, count in build.parameter_counts(pipeline.transformer).items()]
    for name, column in tokens.items():
        lines.append(f"{name} tokens per sample: {column.mean():.0f} on average, {column.max():.0f} at most")
    launch = Launch(
        width=weight_dtype(config, accelerator.device).itemsize,
        processes=accelerator.num_processes,
        sharded=is_deepspeed(accelerator),
    )
    encoders = _encoders(config, pipeline, isinstance(raw.train, ClosedSet))
    longest = int(sum(tokens.values()).max())
    lines += table(estimate(config, pipeline.transformer, longest, encoders, launch))
    sampler = LengthBatches(
        np.zeros((n_samples, 2)), config.trainer.train_batch_size, process=Process(count=accelerator.num_processes)
    )
    batches = sampler.batches_per_epoch
    lines.append(f"{n_samples:,} samples, {batches:,} batches per epoch and process; counted in {len(some)} of them")
    steps = build.number_of_steps(config, batches)
    build.make_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=1.0), steps)  # raises for what a run would refuse
    lines.append(f"{steps:,} steps")
    return "\n".join(lines)


def _encoders(config: Config, pipeline: Seg2AnyPipeline, is_closed: bool) -> Encoders:
    """What the configured caches leave on the GPU."""
    text, trainer = 0, config.trainer
    if trainer.cache_text != "all":
        text += _size(pipeline.text_encoder)
        text += 0 if is_closed and trainer.cache_text == "classes" else _size(pipeline.text_encoder_2)
    return Encoders(text=text, vae=0 if trainer.cache_latents else _size(pipeline.vae))


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
