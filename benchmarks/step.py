"""Time a denoising step and a whole image with the published scheme, ours and plain FLUX.

    python -m benchmarks.step                    # a FLUX of 332 million random weights on a CPU, 1024 image tokens
    python -m benchmarks.step --size flux-dev    # FLUX.1-dev's size on CUDA: 512, 1024 and 2048 px, batches of 1 and 4

The schemes of `benchmarks/step_schemes.py` take turns on the image of `benchmarks/scenes.py`, without text encoders and
VAE. Their outputs must agree before anything is timed. Then the bars are measured: `attention alone` compares one AIA
block at 4096 image tokens and 24 heads with torch's kernel and a dense float mask; `growth` is explained in
`benchmarks/step_growth.py`. The last line is JSON, which is also written to benchmarks/results. `--clock cpu` measures
processor time, for a busy machine. With the defaults it takes about five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.clock import CLOCKS, in_turn, timed
from benchmarks.result_lines import check_place
from benchmarks.scenes import PATCH
from benchmarks.step_bars import attention_bars, bars, growth_bars
from benchmarks.step_growth import measure_growth
from benchmarks.step_schemes import ISOLATED, SIZES, Case, Given, Models, Scheme, schemes_of, tokens_of_step
from seg2any.evaluation.report.results import bar_lines
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import exit_status, whole
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.interrupts import run_command
from seg2any.system.precision import has_fast_bfloat16
from seg2any.system.provenance import circumstances

RESULTS = Path(__file__).parent / "results"
NOT_COMPARED = ("plain", "kernel", ISOLATED)
MOST_DIFFERENCE = 0.02  # relative difference of outputs that rounding to bfloat16 explains
DEFAULTS = {  # sides, batch sizes, steps of a whole image, rounds
    "cpu": ((512,), (1,), 4, 3),
    "flux-dev": ((512, 1024, 2048), (1, 4), 28, 5),
    "tiny": ((128,), (1,), 2, 3),
}


def measure(options: argparse.Namespace, models: Models) -> list[dict]:
    """Measure every case and scheme, print the table and return its rows."""
    results = []
    print(
        f"{'px':>5}{'entities':>9}{'batch':>6}{'tokens':>7}  {'scheme':<10}{'step s, least':>14}{'median':>8}", end=""
    )
    print(f"{'of plain':>9}{'published/':>11}{'image s':>9}{'GiB':>6}")
    for case in cases(options):
        given = Given(models, case, torch.device(options.device), torch.bfloat16)
        rows = measure_case(options, given)
        least = {row["scheme"]: min(row["seconds"]) for row in rows}
        for row in rows:
            image = f"{row['image_seconds']:>9.2f}" if row["image_seconds"] else f"{'-':>9}"
            memory = f"{row['working_gib']:>6.1f}" if row["working_gib"] is not None else f"{'-':>6}"
            this = least[row["scheme"]]
            print(f"{case.side:>5}{case.n_entities:>9}{case.batch_size:>6}{row['tokens']:>7}  ", end="")
            print(f"{row['scheme']:<10}{this:>14.3f}{statistics.median(row['seconds']):>8.3f}", end="")
            print(f"{this / least['plain']:>9.2f}{least['published'] / this:>11.2f}{image}{memory}", flush=True)
        results += rows
    return results


def cases(options: argparse.Namespace) -> list[Case]:
    """Combine every side, batch size and number of entities."""
    return [
        Case(side, n_entities, batch)
        for side in options.sides
        for batch in options.batch
        for n_entities in options.entities
    ]


def measure_case(options: argparse.Namespace, given: Given) -> list[dict]:
    """Time the steps of all schemes in turn, and whole images at the middle number of entities."""
    schemes, noise = schemes_of(given), given.latents()
    prepared = {scheme.name: scheme.prepare() for scheme in schemes}

    def step(scheme: Scheme) -> torch.Tensor:
        with scheme.context():
            return scheme.step(prepared[scheme.name], noise, 0.5)

    check_agreement({scheme.name: step(scheme).float() for scheme in schemes if scheme.name not in NOT_COMPARED})
    works = {scheme.name: lambda scheme=scheme: step(scheme) for scheme in schemes}
    seconds = in_turn(works, options.rounds, options.device, options.clock)
    makes_images = options.image_steps and given.case.n_entities == sorted(options.entities)[len(options.entities) // 2]
    rows = []
    for scheme in schemes:
        image = None
        if makes_images:
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
    expected = outputs["published"]
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


def grown(options: argparse.Namespace, models: Models) -> list[dict]:
    """Measure growth at the table's sides; on a CPU also at twice the last one.

    With more image tokens, the tokens of captions and contours weigh less.
    """
    sides = options.sides if options.device == "cuda" else [*options.sides, 2 * options.sides[-1]]
    return measure_growth(models, sides, options.batch[0], options.rounds, options.device, options.clock)


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default this process's, and fill in `DEFAULTS`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="flux-dev needs CUDA (default: cpu)")
    parser.add_argument("--sides", type=whole(1), nargs="+", help="sides of the image in pixels (default: as above)")
    parser.add_argument(
        "--entities", type=whole(1), nargs="+", default=[1, 8, 20], help="numbers of regions (default: 1 8 20)"
    )
    parser.add_argument("--batch", type=whole(1), nargs="+", help="batch sizes (default: 1; flux-dev: 1 4)")
    parser.add_argument(
        "--rounds", type=whole(1), help="rounds after the first, uncounted one (default: 3; flux-dev: 5)"
    )
    parser.add_argument(
        "--image_steps", type=whole(0), help="steps of a whole image; 0 makes none (default: 4; flux-dev: 28)"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--skip_attention", action="store_true", help="skip the bars of attention alone")
    parser.add_argument("--skip_growth", action="store_true", help="skip the table of what more regions cost")
    parser.add_argument(
        "--output", type=Path, help="file for the JSON line (default: benchmarks/results/step_SIZE.json)"
    )
    options = parser.parse_args(words)
    options.device = "cuda" if options.size == "flux-dev" else "cpu"
    sides, batch, image_steps, rounds = DEFAULTS[options.size]
    options.sides, options.batch = options.sides or list(sides), options.batch or list(batch)
    options.rounds = rounds if options.rounds is None else options.rounds
    options.image_steps = image_steps if options.image_steps is None else options.image_steps
    options.output = options.output or RESULTS / f"step_{options.size}.json"
    return options


def check(options: argparse.Namespace) -> None:
    """Raise UserError for what cannot be measured here; warn where the times mean little."""
    check_place(options.output)
    if options.size == "flux-dev" and not torch.cuda.is_available():
        raise UserError("--size flux-dev: no CUDA device was found; use a GPU with 60 GB, or --size cpu")
    if options.device == "cpu" and not has_fast_bfloat16("cpu"):
        print("this CPU has no bfloat16 instructions, so the times mean little", file=sys.stderr)
    if odd := [side for side in options.sides if side % (4 * PATCH)]:
        raise UserError(f"--sides {odd[0]}: not a multiple of {4 * PATCH}; give multiples of {4 * PATCH}")


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured (whether the bars are met or not), 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(words)
    return exit_status("benchmarks.step", lambda: run(options), "start again")


@torch.no_grad()
def run(options: argparse.Namespace) -> None:
    """Measure; print tables, bars and the JSON line, which --output keeps. Raises UserError."""
    check(options)
    keep_freed_memory()  # as infer.py does
    models = Models.random(SIZES[options.size], torch.device(options.device), torch.bfloat16)
    n_weights = sum(weight.numel() for weight in models.stock.parameters())
    print(f"{n_weights / 1e6:.0f} million weights, bf16, {options.device}, {torch.get_num_threads()} threads")
    results = measure(options, models)
    growth = [] if options.skip_growth else grown(options, models)
    del models
    found = bars(options, results) + growth_bars(growth)
    found += [] if options.skip_attention else attention_bars(options)
    print(*bar_lines(found), sep="\n")
    about = {"benchmark": "step", "size": options.size, "weights": n_weights, "clock": options.clock}
    bars_met = [asdict(bar) | {"is_met": bar.is_met} for bar in found]
    line = json.dumps(about | {"bars": bars_met, "results": results, "growth": growth} | circumstances(options.device))
    print(line)
    with atomic_write(options.output) as temporary:
        temporary.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
