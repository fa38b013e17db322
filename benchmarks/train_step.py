"""Compare samples per second of our training step and the published one.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --trainer.train_batch_size=4    # the published batch
    python -m benchmarks.train_step config/seg2any_ade20k.yaml --trainer.train_batch_size=4 --rounds 10
    python -m benchmarks.train_step --size flux-dev    # random weights on CUDA: samples per second and peak memory

The schemes train on the same batches in turn. `published` runs T5, CLIP and VAE in every step, builds a dense float
mask image by image, and computes both adapters on all tokens (`benchmarks/published_scheme.py`). `ours` runs T5, CLIP
and VAE in every step too; `ours, cached` reads their outputs from caches. The losses of all three must agree. The
default is the config of the shipped adapters, in bf16 where the CPU has bfloat16 instructions. --size is explained in
`benchmarks/train_sizes.py`. The last line is JSON; `--clock cpu` measures processor time, for a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from benchmarks import train_sizes
from benchmarks.clock import CLOCKS, Ratio, timed
from benchmarks.published_scheme import published_scheme
from benchmarks.result_lines import check_place, leave
from seg2any.diffusion.prepare import CondTokens, as_image
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import exit_status, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances
from seg2any.training import batches
from seg2any.training import config as configs
from seg2any.training.batches import Encoder
from seg2any.training.config import Config
from seg2any.training.reading import ReadSample
from seg2any.training.samples import EncodedSample, Latents, latents_of
from seg2any.training.tasks.generation import Generation
from seg2any.training.trainer import Trainer

DEFAULT = ("config/seg2any_shapes.yaml", "--data.train.params.n_scenes=64")
CACHED = {"cache_text": "all", "cache_latents": True, "cache": "all"}
LIVE = {"cache_text": "none", "cache_latents": False}
FIRST_ROUNDS = 6  # not counted: batches differ in length, so the process still allocates memory in these rounds


@dataclass(frozen=True)
class Scheme:
    """One way to compute a training step.

    caching    keys of `trainer` that decide which encoder outputs are cached
    published  encode and compute as the published code does
    backend    attention backend; None: the config's
    """

    name: str
    caching: dict[str, object]
    published: bool = False
    backend: str | None = None


SCHEMES = (
    Scheme("published", LIVE, published=True, backend="sdpa"),
    Scheme("ours", LIVE),
    Scheme("ours, cached", CACHED),
)


class LastLoss:
    """Log of a run that keeps only the last loss."""

    def begin(self) -> None: ...

    def step(self, *_, **__) -> None: ...

    def measure(self, loss: torch.Tensor, *_, **__) -> None:
        self.loss = loss.item()


class PublishedEncoder(Encoder):
    """Encoder that runs the frozen networks as the published code does, in every training step.

    T5 and CLIP encode the captions of each sample separately, even if they were encoded before. The VAE encodes all
    images of a batch in one call and all contour maps in another. All samples have the same size, and all have
    contours or none has.
    """

    def __call__(self, reads: Sequence[ReadSample]) -> list[EncodedSample]:
        latents = iter(self._latents(reads))
        with mock.patch.object(batches, "encode_latents", lambda *_: next(latents)):
            return [sample for read in reads for sample in super(PublishedEncoder, self).__call__([read])]

    def _latents(self, reads: Sequence[ReadSample]) -> list[Latents]:
        with_std = self.settings.vae_posterior == "sample"
        images = self.base.encode_images(torch.cat([as_image(read.pixels) for read in reads]))
        cond = [None] * len(reads)
        if reads[0].drawn.condition is not None:
            contours = self.base.encode_images(torch.cat([as_image(read.drawn.condition) for read in reads]))
            cond = [CondTokens.of(read.drawn.kept, contours[n]) for n, read in enumerate(reads)]
        return [latents_of(read.drawn, images[n], cond[n], with_std) for n, read in enumerate(reads)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole(1), default=5, help="steps of each scheme (default: %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--size", choices=train_sizes.SIDES, help="use random weights of this size (flux-dev: CUDA)")
    parser.add_argument("--output", type=user_path, help="append the JSON line to this file")
    options, overrides = parser.parse_known_args(arguments)
    return exit_status("benchmarks.train_step", lambda: run(options, overrides), "start again")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Measure; print the table and the JSON line. Raises UserError."""
    check_place(options.output)
    if options.size:
        report = measure_size(options.size, options.rounds)
    else:
        config = configs.load([*(() if has_file(overrides) else DEFAULT), *overrides])
        with tempfile.TemporaryDirectory() as folder:
            report = measure(config, options.rounds, options.clock, Path(folder))
    print(train_sizes.table(report["rows"]) if options.size else table(report))
    leave([json.dumps(report)], options.output)


def has_file(words: list[str]) -> bool:
    """Tell whether the words begin with a config file, which replaces the default one."""
    return bool(words) and not words[0].startswith("--")


def measure_size(name: str, rounds: int) -> dict:
    """Measure random weights of a size with `train_sizes`, and add the circumstances."""
    rows = train_sizes.measure(name, rounds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"benchmark": "train_step", "size": name, "rounds": rounds, "rows": rows} | circumstances(device)


def measure(config: Config, rounds: int, clock: str, folder: Path) -> dict:
    """Measure samples per second of every scheme; each round starts with another scheme.

    Raises UserError if the schemes' losses differ.
    """
    trainers = {scheme.name: trainer_of(scheme, config, folder) for scheme in SCHEMES}
    if trainers[SCHEMES[0].name].accelerator.device.type == "cpu":
        keep_freed_memory()  # as train.py does
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(FIRST_ROUNDS + rounds):
        losses = []
        for scheme in SCHEMES[turn % len(SCHEMES) :] + SCHEMES[: turn % len(SCHEMES)]:
            took, loss = timed_step(trainers[scheme.name], scheme, clock)
            seconds[scheme.name].append(took)
            losses.append(loss)
        if max(losses) - min(losses) > 1e-3 * max(losses):
            raise UserError(f"schemes: their losses differ, {losses}; report this as a bug")
    samples = config.trainer.train_batch_size * config.trainer.gradient_accumulation_steps
    seconds = {name: values[FIRST_ROUNDS:] for name, values in seconds.items()}
    published = SCHEMES[0].name
    return {
        "benchmark": "train_step",
        "samples_per_s": {name: samples / statistics.median(values) for name, values in seconds.items()},
        "ratio": {name: asdict(Ratio.of(seconds[published], values)) for name, values in seconds.items()},
        "seconds": seconds,
        "batch_size": config.trainer.train_batch_size,
        "resolution": config.resolution,
        "rounds": rounds,
        "clock": clock,
        "precision": str(trainers[published].strategy.dtype),
    } | circumstances(trainers[published].accelerator.device)


def trainer_of(scheme: Scheme, config: Config, folder: Path) -> Trainer:
    """Build the trainer of a scheme, with its output and caches in `folder`."""
    options = replace(config.trainer, cache_dir=str(folder / "cache"), **scheme.caching)
    condition = config.model.condition.override({"attention_backend": scheme.backend})
    model = replace(config.model, condition=condition)
    project = replace(config.project, output_dir=str(folder / scheme.name))
    val = replace(config.data.val, type=None, target=None)
    chosen = replace(config, trainer=options, model=model, project=project, data=replace(config.data, val=val))
    trainer = Trainer(chosen, Generation(chosen))
    if scheme.published:
        trainer.task.pipeline.vae.to(memory_format=torch.contiguous_format)  # only our code uses channels_last
        encode = trainer.task.data.encode
        trainer.task.data.encode = PublishedEncoder(**vars(encode))
    return trainer


def timed_step(trainer: Trainer, scheme: Scheme, clock: str) -> tuple[float, float]:
    """Run one training step; return its seconds and its loss."""
    log = LastLoss()
    with published_scheme() if scheme.published else contextlib.nullcontext():
        took = timed(lambda: trainer.step(log), trainer.accelerator.device, clock)
    return took, log.loss


def table(report: dict) -> str:
    """Format samples per second of every scheme, and its ratio to `published`."""
    lines = [f"{'scheme':<16}{'samples/s':>12}  ratio"]
    for name, rate in report["samples_per_s"].items():
        lines.append(f"{name:<16}{rate:>12.2f}  {Ratio(**report['ratio'][name])}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
