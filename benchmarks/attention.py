"""Time of regional attention alone, every backend in turn, against one kernel call with a dense float mask.

    python -m benchmarks.attention
    python -m benchmarks.attention --tokens 512 1024 2048 4096 --entities 1 8 20 --train
    python -m benchmarks.attention --device cuda --dtype bf16 --tokens 4096 --rounds 20

Attribute isolation (AIA) and semantic alignment (SAA) of one image: rectangular regions on three quarters of it, 64
tokens of global text, 16 for each region, a contour of a tenth of the image tokens. `sdpa` is the dense float mask,
built before and shared by all heads; `open` is plain FLUX, without mask. Backends that hold every score are left out
(-) above 1 GiB of them, and those that cannot run here too. `plan` is the time to build all that one image's steps
share. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from seg2any.attention import BACKENDS, Attention, AttentionPattern, AttentionPlan, AttentionRules, attend
from seg2any.attention.grouped import grouping
from seg2any.errors import UserError
from seg2any.provenance import circumstances
from seg2any.tokens import SampleTokens, TokenLayout, layout_tokens

RULES = AttentionRules("hard", (0, 0), 0.8)
BLOCKS = {"AIA": 0, "SAA": 1}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BASELINE = "sdpa"
HOLD_ALL_SCORES = ("dense", "matmul")
MOST_SCORES = 2**30  # bytes


def scene(n_image: int, n_entities: int) -> TokenLayout:
    """One image of n_image tokens, the regions in rows and columns on three quarters of it."""
    height = 2 ** (int(math.log2(n_image)) // 2)
    width = n_image // height
    columns = math.ceil(math.sqrt(n_entities))
    rows = math.ceil(n_entities / columns)
    y, x = np.indices((height, width))
    cell = (y * rows // max(1, height * 3 // 4)) * columns + x * columns // width
    masks = np.stack([(cell == entity) & (y < height * 3 // 4) for entity in range(n_entities)])
    contour = np.random.default_rng(0).integers(0, height, (n_image // 10, 2))
    return layout_tokens([SampleTokens((64,) + (16,) * n_entities, masks, contour)])


def plan_seconds(tokens: TokenLayout, rounds: int) -> float:
    """The fastest of several times to go from tokens to the groups of both kinds of blocks."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        plan = AttentionPlan(tokens, RULES)
        for block in BLOCKS.values():
            grouping(plan.pattern(block))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def runnable(arguments: argparse.Namespace, n_tokens: int) -> list[str]:
    """The backends that fit; the baseline first."""
    holds_too_much = arguments.heads * n_tokens**2 * 4 > MOST_SCORES
    left_out = set(HOLD_ALL_SCORES) if holds_too_much else set()
    left_out |= set() if arguments.device.startswith("cuda") else {"flex"}
    return [name for name in arguments.backends if name not in left_out]


def seconds_of(
    arguments: argparse.Namespace, tokens: TokenLayout, pattern: AttentionPattern, names: list[str]
) -> dict[str, float]:
    """Median seconds of every backend, and of `open`, run in turn after one round that does not count."""
    shape = (*tokens.kind.shape, arguments.heads, arguments.head_dim)
    leaves = torch.randn(3, *shape, dtype=DTYPES[arguments.dtype], device=arguments.device)
    query, key, value = (leaf.requires_grad_(arguments.train) for leaf in leaves)
    open_pattern = AttentionPattern(pattern.tokens, pattern.classes, Attention.OPEN, AttentionRules("none"))

    def one(name: str) -> None:
        given = open_pattern if name == "open" else pattern
        output = attend(query, key, value, given, BASELINE if name == "open" else name)
        if arguments.train:
            output.sum().backward()

    seconds: dict[str, list[float]] = {name: [] for name in (*names, "open")}
    for _ in range(1 + arguments.rounds):
        for name, measured in seconds.items():
            measured.append(timed(lambda name=name: one(name), arguments.device))
    return {name: statistics.median(measured[1:]) for name, measured in seconds.items()}


def timed(work: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    results = []
    columns = [*arguments.backends, "open"]
    print("image  entities  block  plan ms  " + "  ".join(f"{name:>16}" for name in columns))
    for n_image in arguments.tokens:
        for n_entities in arguments.entities:
            tokens = scene(n_image, n_entities).to(arguments.device)
            plan_ms, plan = plan_seconds(tokens, 5) * 1e3, AttentionPlan(tokens, RULES)
            for label in arguments.blocks:
                names = runnable(arguments, tokens.kind.shape[1])
                seconds = seconds_of(arguments, tokens, plan.pattern(BLOCKS[label]), names)
                cells = [cell(seconds, name) for name in columns]
                print(f"{n_image:5}  {n_entities:8}  {label:>5}  {plan_ms:7.1f}  " + "  ".join(cells), flush=True)
                about = {"image_tokens": n_image, "entities": n_entities, "block": label, "plan_ms": round(plan_ms, 2)}
                ratios = {name: round(seconds[BASELINE] / each, 3) for name, each in seconds.items()}
                results.append({**about, "seconds": seconds, "speedup": ratios})
    return results


def cell(seconds: dict[str, float], name: str) -> str:
    if name not in seconds:
        return f"{'-':>16}"
    return f"{seconds[name] * 1e3:8.1f} ms {seconds[BASELINE] / seconds[name]:4.2f}x"


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024], help="image tokens (default: 512 1024)")
    parser.add_argument("--entities", type=int, nargs="+", default=[1, 8, 20], help="regions (default: 1 8 20)")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), help="default: both")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="default: all")
    parser.add_argument("--heads", type=int, default=24, help="default: FLUX.1's 24")
    parser.add_argument("--head_dim", type=int, default=128, help="default: FLUX.1's 128")
    parser.add_argument("--rounds", type=int, default=3, help="after one that does not count (default: 3)")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32")
    options = parser.parse_args(words)
    options.backends = [BASELINE, *(name for name in options.backends if name != BASELINE)]
    return options


def main() -> int:
    options = parse_options()
    try:
        results = measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"options": vars(options), "results": results, **circumstances(options.device)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
