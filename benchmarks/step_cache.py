"""Measure time per image and quality with every step cache.

    python -m benchmarks.step_cache --scenes 20
    python -m benchmarks.step_cache --calibrate --scenes 4

The same unseen scenes of the `shapes` world are generated without a cache and with each cache in turn, and judged from
their pixels like in `python -m seg2any.evaluation.shapes`. The last line is JSON. `--calibrate` instead measures the
ratios that cache `mag` needs for a model, and prints the line to add to `seg2any/bases/flux1/base.py`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import MagCacheConfig
from tqdm import tqdm

from benchmarks.clock import CLOCKS, timed
from benchmarks.result_lines import check_place, leave
from seg2any.bases.text import TextCache
from seg2any.data.dataset import Sample
from seg2any.data.shapes import ShapesDataset
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.evaluation.shapes.judge import Verdict, judge
from seg2any.evaluation.shapes.results import results
from seg2any.evaluation.shapes.sources import open_session
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.console import exit_status, whole
from seg2any.system.device import choose_device
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.precision import PRECISIONS
from seg2any.system.provenance import circumstances

SHOWN = ("colour", "pattern", "IoU", "boundary IoU", "leak")


@dataclass(frozen=True)
class Measured:
    """Results of one cache: seconds of every image, and the judge's means in 0..1 by name."""

    seconds: list[float]
    quality: dict[str, float]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes/model", help="pipeline folder (default: %(default)s)")
    parser.add_argument("--lora", type=user_path, default="examples/shapes/lora", help="adapter folder (%(default)s)")
    parser.add_argument("--scenes", type=whole(1), default=20, help="scenes of the test split (default: %(default)s)")
    parser.add_argument("--num_inference_steps", type=whole(1), default=20, help="default: %(default)s")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, help="default: bf16 where the device is fast in it")
    parser.add_argument("--calibrate", action="store_true", help="measure the ratios of a model for cache mag")
    parser.add_argument("--output", type=user_path, help="append the JSON line to this file")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.step_cache", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure and print table and JSON line, or calibrate. Raises UserError."""
    check_place(options.output)
    device = choose_device(options.device)
    session, recipe = open_session(options.model, options.lora, options.weight_dtype, device)
    pipe = session.pipeline
    pipe.set_progress_bar_config(disable=True)
    scenes = ShapesDataset("test", options.scenes)
    samples = [scenes[index] for index in range(len(scenes))]
    if options.calibrate:
        print(f"    {sizes_of(pipe.transformer.config)}: {calibrate(pipe, samples, options.num_inference_steps)},")
        return
    measured = measure(pipe, samples, options.num_inference_steps, options.clock)
    report = summary(measured) | {
        "benchmark": "step_cache",
        "scenes": len(samples),
        "num_inference_steps": options.num_inference_steps,
        "clock": options.clock,
        "recipe": recipe,
    }
    report |= circumstances(device)
    print(table(report))
    leave([json.dumps(report)], options.output)


def measure(pipe: Seg2AnyPipeline, samples: list[Sample], steps: int, clock: str) -> dict[str, Measured]:
    """Generate and judge every scene with every cache, one image at a time.

    The first scene is generated once more before, which is not counted.
    """
    texts, device = TextCache(pipe.base), pipe.vae.device
    seconds: dict[str, list[float]] = {name: [] for name in STEP_CACHES}
    verdicts: dict[str, dict[str, list[Verdict]]] = {name: {} for name in STEP_CACHES}

    def make(sample: Sample, cache: str) -> tuple[float, np.ndarray]:
        images = []
        took = timed(
            lambda: images.extend(
                pipe(
                    sample.layout, num_inference_steps=steps, step_cache=cache, known_texts=texts, output_type="np"
                ).images
            ),
            device,
            clock,
        )
        return took, np.round(255 * images[0]).astype(np.uint8)

    make(samples[0], "none")
    for number, sample in enumerate(tqdm(samples, "scenes", leave=False)):
        start = number % len(STEP_CACHES)
        for cache in STEP_CACHES[start:] + STEP_CACHES[:start]:
            took, image = make(sample, cache)
            seconds[cache].append(took)
            verdicts[cache][sample.layout.name] = [judge(image, sample.layout)]
    return {
        cache: Measured(seconds[cache], {result.name: result.value for result in results(verdicts[cache])})
        for cache in STEP_CACHES
    }


def sizes_of(config: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the number of double blocks, of single blocks, and the width."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return config["num_layers"], config["num_single_layers"], width


def calibrate(pipe: Seg2AnyPipeline, samples: list[Sample], steps: int) -> tuple[float, ...]:
    """Return the ratio of every step, averaged over scenes; diffusers measures and prints them."""
    found = []
    for sample in samples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
            pipe(sample.layout, num_inference_steps=steps, step_cache=config, output_type="latent")
        (line,) = (line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]"))
        found.append(ast.literal_eval(line))
    return tuple(round(float(ratio), 4) for ratio in np.mean(found, axis=0))


def summary(measured: dict[str, Measured]) -> dict:
    """Return medians, their ratios to no cache, and the quality."""
    medians = {cache: statistics.median(found.seconds) for cache, found in measured.items()}
    return {
        "seconds_per_image": medians,
        "time_ratio": {cache: seconds / medians["none"] for cache, seconds in medians.items()},
        "quality": {cache: found.quality for cache, found in measured.items()},
    }


def table(report: dict) -> str:
    """Format a line for each cache."""
    lines = [f"{'cache':<14}{'s/image':>9}{'ratio':>8}" + "".join(f"{name:>14}" for name in SHOWN)]
    for cache, seconds in report["seconds_per_image"].items():
        quality = "".join(f"{report['quality'][cache].get(name, float('nan')):>14.4f}" for name in SHOWN)
        lines.append(f"{cache:<14}{seconds:>9.2f}{report['time_ratio'][cache]:>8.2f}{quality}")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_command(main)
