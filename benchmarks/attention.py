"""Time regional attention with every backend and with one dense float mask.

    python -m benchmarks.attention
    python -m benchmarks.attention --tokens 256 1024 4096 --entities 1 8 20 --train
    python -m benchmarks.attention --device cuda --dtype bf16 --tokens 4096 --rounds 20

The blocks have attribute isolation (AIA) or semantic alignment (SAA) on the image of `benchmarks/scenes.py`. `one mask`
is one call of torch's kernel with a dense float mask, built beforehand and shared by all heads; query, key and value
are copied head by head first, which the kernel is quickest with. `open` is the same call without a mask. A backend
shows - where it cannot run, or would keep more than 1 GiB of attention scores. `plan` is the time to build what all
steps of an image share. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F

from benchmarks.clock import CLOCKS, Ratio, in_turn
from benchmarks.scenes import PATCH, scene
from seg2any.attention.attend import BACKENDS, AttentionPlan, attend
from seg2any.attention.grouped import grouping
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.system.console import exit_status, whole
from seg2any.system.device import choose_device
from seg2any.system.interrupts import run_command
from seg2any.system.precision import PRECISIONS, dtype_of
from seg2any.system.provenance import circumstances

SETTINGS = ConditionSettings("hard", (0, 0), 0.8, cond_scale_factor=2)
BLOCKS = {"AIA": 0, "SAA": 1}
BASELINE = "one mask"
HOLD_ALL_SCORES = ("dense",)
MOST_SCORES = 2**30  # bytes of attention scores


def plan_seconds(tokens: TokenLayout, rounds: int, device: str) -> float:
    """Return the least of several times to get from tokens to the groups of both blocks."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        plan = AttentionPlan(tokens, SETTINGS)
        for block in BLOCKS.values():
            grouping(plan.pattern(block), device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def runnable(arguments: argparse.Namespace, n_tokens: int) -> list[str]:
    """List the baseline and the backends that can run here within `MOST_SCORES`."""
    holds_too_much = arguments.heads * n_tokens**2 * 4 > MOST_SCORES
    left_out = set(HOLD_ALL_SCORES) if holds_too_much else set()
    left_out |= set() if arguments.device.startswith("cuda") else {"flex"}
    return [BASELINE, *(name for name in arguments.backends if name not in left_out)]


def seconds_of(
    arguments: argparse.Namespace, tokens: TokenLayout, pattern: AttentionPattern, names: list[str]
) -> dict[str, list[float]]:
    """Time all `names` and `open` in turn, and return the seconds of every round."""
    shape = (*tokens.kind.shape, arguments.heads, arguments.head_dim)
    leaves = torch.randn(3, *shape, dtype=dtype_of(arguments.dtype), device=arguments.device)
    query, key, value = (leaf.requires_grad_(arguments.train) for leaf in leaves)

    def one(name: str) -> None:
        if name in (BASELINE, "open"):
            mask = None if name == "open" else pattern.mask(query.dtype, query.device)
            heads_first = (x.transpose(1, 2).contiguous() for x in (query, key, value))
            output = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        else:
            output = attend(query, key, value, pattern, name)
        if arguments.train:
            output.sum().backward()

    works = {name: lambda name=name: one(name) for name in (*names, "open")}
    return in_turn(works, arguments.rounds, arguments.device, arguments.clock)


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every number of image tokens and entities, and print the table."""
    results = []
    columns = [BASELINE, *arguments.backends, "open"]
    print("image  entities  block  plan ms  " + "  ".join(f"{name:>16}" for name in columns))
    for n_image in arguments.tokens:
        for n_entities in arguments.entities:
            tokens = scene(math.isqrt(n_image) * PATCH, n_entities, SETTINGS)
            plan_ms, plan = plan_seconds(tokens, 5, arguments.device) * 1e3, AttentionPlan(tokens, SETTINGS)
            for label in arguments.blocks:
                names = runnable(arguments, tokens.kind.shape[1])
                seconds = seconds_of(arguments, tokens, plan.pattern(BLOCKS[label]), names)
                cells = [cell(seconds, name) for name in columns]
                print(f"{n_image:5}  {n_entities:8}  {label:>5}  {plan_ms:7.1f}  " + "  ".join(cells), flush=True)
                about = {"image_tokens": n_image, "entities": n_entities, "block": label, "plan_ms": round(plan_ms, 2)}
                results.append({**about, "seconds": seconds})
    return results


def cell(seconds: dict[str, list[float]], name: str) -> str:
    """Format a cell of the table: median milliseconds, and the speed relative to `one mask`."""
    if name not in seconds:
        return f"{'-':>16}"
    speed = Ratio.of(seconds[BASELINE], seconds[name]).median
    return f"{statistics.median(seconds[name]) * 1e3:8.1f} ms {speed:4.2f}x"


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=whole(1), nargs="+", default=[256, 1024], help="image tokens (default: 256 1024)"
    )
    parser.add_argument(
        "--entities", type=whole(1), nargs="+", default=[1, 8, 20], help="numbers of regions (default: 1 8 20)"
    )
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), help="default: both")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="default: all")
    parser.add_argument("--heads", type=whole(1), default=24, help="default: FLUX.1's 24")
    parser.add_argument("--head_dim", type=whole(1), default=128, help="default: FLUX.1's 128")
    parser.add_argument("--rounds", type=whole(1), default=3, help="rounds after the first, uncounted one (default: 3)")
    parser.add_argument("--train", action="store_true", help="time forward and backward pass")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(words)
    return exit_status("benchmarks.attention", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure; print the table and the JSON line. Raises UserError."""
    options.device = str(choose_device(options.device))
    results = measure(options)
    print(json.dumps({"options": vars(options), "results": results, **circumstances(options.device)}))


if __name__ == "__main__":
    run_command(main)
