"""Time a denoising step with the published scheme, ours, plain FLUX and the machine's limit; print the bars of speed.

    python -m benchmarks.step                    # on a CPU: random weights, 512 and 1024 px, all bars
    python -m benchmarks.step --size flux-dev    # FLUX.1-dev's size on CUDA: 512, 1024 and 2048 px, batches of 1 and 4

The schemes of `benchmarks/step_schemes.py` take turns on the image of `benchmarks/scenes.py`, without text encoders and
VAE, in another order in every round; masks are built once per image, as in the published code. Their outputs must agree
before anything is timed. Then the other bars of `benchmarks/step_bars.py` are measured: what more entities cost
(`benchmarks/step_growth.py`), training (`benchmarks/step_train.py`, `benchmarks/train_step.py`) and attention alone.

On a CPU one thread computes, and processor time counts, so that a busy machine changes little. The sizes are `cpu`
(332 million weights, 12 heads x 128) and `narrow` (8 heads x 64). The last line is JSON, which is also written to
benchmarks/results, with a page of tables beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import train_step
from benchmarks.clock import in_turn, timed
from benchmarks.step_bars import attention_bars, growth_bars, loop_bar, step_bars, training_bars
from benchmarks.step_growth import Runs, measure_growth
from benchmarks.step_options import Table, check, parse_options
from benchmarks.step_page import page, ratio
from benchmarks.step_schemes import (
    ISOLATED,
    KERNEL,
    LIMIT,
    PLAIN,
    PUBLISHED,
    SIZES,
    Case,
    Given,
    Models,
    schemes_of,
    tokens_of_step,
)
from benchmarks.step_train import measure_training
from seg2any.evaluation.report.results import Bar, bar_lines
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.interrupts import run_command
from seg2any.system.precision import dtype_of
from seg2any.system.provenance import circumstances
from seg2any.training import config as configs

NOT_COMPARED = (PLAIN, KERNEL, LIMIT, ISOLATED)
MOST_DIFFERENCE = 0.02  # relative difference of outputs that rounding to bfloat16 explains


def measure(options: argparse.Namespace, models: Models, table: Table) -> list[dict]:
    """Measure every case and scheme of a table, print it and return its rows."""
    results = []
    print(f"\n{'size':<9}{'px':>5}{'entities':>9}{'batch':>6}{'tokens':>7}  {'scheme':<10}{'step s':>8}", end="")
    print(f"  {'published / this':<18}  {'this / plain':<18}  {'this / limit':<18}{'image s':>9}{'GiB':>6}")
    for case in cases(options, table):
        given = Given(models, case, torch.device(options.device), dtype_of(options.dtype))
        rows = [{"size": table.size, **row} for row in measure_case(options, given, table.schemes)]
        seconds = {row["scheme"]: row["seconds"] for row in rows}
        for row in rows:
            image = f"{row['image_seconds']:.2f}" if row["image_seconds"] else "-"
            memory = f"{row['working_gib']:.1f}" if row["working_gib"] is not None else "-"
            print(f"{table.size:<9}{case.side:>5}{case.n_entities:>9}{case.batch_size:>6}{row['tokens']:>7}  ", end="")
            print(f"{row['scheme']:<10}{statistics.median(row['seconds']):>8.3f}", end="")
            print(f"  {ratio(seconds.get(PUBLISHED), row['seconds']):<18}", end="")
            print(f"  {ratio(row['seconds'], seconds.get(PLAIN)):<18}", end="")
            print(f"  {ratio(row['seconds'], seconds.get(LIMIT)):<18}{image:>9}{memory:>6}", flush=True)
        results += rows
    return results


def cases(options: argparse.Namespace, table: Table) -> Iterator[Case]:
    """Combine every side, batch size and number of entities."""
    for side in table.sides:
        for batch in options.batch:
            for n_entities in table.entities:
                yield Case(side, n_entities, batch)


def measure_case(options: argparse.Namespace, given: Given, names: Sequence[str]) -> list[dict]:
    """Time the steps of the schemes in turn, and whole images with 8 entities."""
    schemes, noise = schemes_of(given, names), given.latents()
    prepared = {scheme.name: scheme.prepare() for scheme in schemes}

    def step(scheme) -> torch.Tensor:
        with scheme.context():
            return scheme.step(prepared[scheme.name], noise, 0.5)

    check_agreement({scheme.name: step(scheme).float() for scheme in schemes if scheme.name not in NOT_COMPARED})
    works = {scheme.name: lambda scheme=scheme: step(scheme) for scheme in schemes}
    seconds = in_turn(works, options.rounds, options.device, options.clock)
    makes_images = options.image_steps and given.case.n_entities == 8
    rows = []
    for scheme in schemes:
        image = None
        if makes_images and scheme.name != LIMIT:
            image = timed(lambda scheme=scheme: scheme.image(noise, options.image_steps), options.device, options.clock)
        rows.append(
            asdict(given.case)
            | {"scheme": scheme.name, "tokens": tokens_of_step(prepared[scheme.name], given.case)}
            | {"seconds": seconds[scheme.name], "image_seconds": image, "image_steps": options.image_steps}
            | {"working_gib": working_memory(works[scheme.name], options.device)}
        )
    return rows


def check_agreement(outputs: dict[str, torch.Tensor]) -> None:
    """Raise UserError if the predictions [B, I, C] differ by more than rounding explains."""
    expected = outputs[PUBLISHED]
    for name, output in outputs.items():
        difference = float((output - expected).norm() / expected.norm())
        if not difference < MOST_DIFFERENCE:
            raise UserError(f"{name}: the output differs by {difference:.1%} from `published`; report this as a bug")


def working_memory(work, device: str) -> float | None:
    """Return the peak GiB of a step, or None without CUDA.

    Weights, embeddings and kept masks are not counted.
    """
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


@torch.no_grad()
def measure_steps(options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Measure the steps of all tables, and growth at the sides of the first; return the rows of both."""
    results, growth, models, size = [], [], None, None
    for n, table in enumerate(options.tables):
        if size != table.size:
            size, models = (
                table.size,
                Models.random(SIZES[table.size], torch.device(options.device), dtype_of(options.dtype)),
            )
        results += measure(options, models, table)
        if n == 0 and "growth" not in options.skip:
            runs = (options.readings, min(3, options.rounds), options.device, options.clock, dtype_of(options.dtype))
            growth = measure_growth(models, table.size, Runs(table.sides, options.batch[0], *runs))
    return results, growth


def measure_train(options: argparse.Namespace) -> tuple[list[Bar], dict]:
    """Measure training's transformer at 512 px with 8 entities, and the loop; return bars and rows."""
    size = options.tables[0].size
    case = Case(options.tables[0].sides[0], 8)
    rows = [measure_training(size, case, options.rounds, options.clock, dtype_of(options.dtype), options.device)]
    with tempfile.TemporaryDirectory() as folder:
        words = [*train_step.DEFAULT, "--trainer.train_batch_size=4", f"--mixed_precision={precision(options.dtype)}"]
        loop = train_step.measure(configs.load(words), options.rounds, options.clock, Path(folder))
    print(train_step.table(loop))
    return [*training_bars(rows), loop_bar(loop)], {"transformer": rows, "loop": loop}


def precision(dtype: str) -> str:
    """Return the value of --mixed_precision for a precision."""
    return "no" if dtype == "fp32" else dtype


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured (whether the bars are met or not), 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(words, __doc__)
    return exit_status("benchmarks.step", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure; print tables, bars and the JSON line, which --output keeps. Raises UserError."""
    check(options)
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as infer.py does
    around = circumstances(options.device)
    where = f"{around['machine']['name']}, {around['machine']['threads']} threads, torch {around['versions']['torch']}"
    print(f"{where}, commit {around['commit']}, {options.dtype}, {options.clock} time, {options.rounds} rounds")
    results, growth = measure_steps(options)
    found, training = step_bars(results), {}
    if "training" not in options.skip and options.device == "cpu":
        bars, training = measure_train(options)
        found += bars
    found += growth_bars(growth)
    found += [] if "attention" in options.skip else attention_bars(options)
    print(
        f"\nbars: {where}, commit {around['commit']}, {options.dtype}; median [least..most] of {options.rounds} rounds"
    )
    print(*bar_lines(found), sep="\n")
    about = {"benchmark": "step", "size": options.size, "clock": options.clock, "dtype": options.dtype}
    about |= {"bars": [asdict(bar) | {"is_met": bar.is_met} for bar in found]}
    line = json.dumps(about | {"results": results, "growth": growth, "training": training} | around)
    print(line)
    for path, text in ((options.output, line + "\n"), (options.output.with_suffix(".md"), page(json.loads(line)))):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
