"""The command line of `benchmarks.step`, and the cases that each size measures by default."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.clock import CLOCKS
from benchmarks.result_lines import check_place
from benchmarks.scenes import PATCH
from benchmarks.step_growth import READINGS
from benchmarks.step_schemes import FOLDED, ISOLATED, LIMIT, PLAIN, PUBLISHED, ROUTED, SCHEMES, SIZES
from seg2any.system.console import whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS, has_fast_bfloat16

RESULTS = Path(__file__).parent / "results"
PARTS = ("growth", "attention", "training")


@dataclass(frozen=True)
class Table:
    """Cases that are measured with the weights of one size, and the schemes that take turns."""

    size: str
    sides: tuple[int, ...]
    entities: tuple[int, ...]
    schemes: tuple[str, ...] = SCHEMES


@dataclass(frozen=True)
class Defaults:
    """Cases that are measured unless options say otherwise; the first table names the size."""

    tables: tuple[Table, ...]
    batch: tuple[int, ...]
    image_steps: int
    rounds: int


DEFAULTS = {
    "cpu": Defaults(
        (
            Table("cpu", (512,), (8,), (PLAIN, LIMIT, PUBLISHED, ROUTED, FOLDED, ISOLATED)),
            Table("cpu", (512,), (20,), (PLAIN, LIMIT, PUBLISHED, ROUTED, FOLDED)),
            Table("cpu", (1024,), (8,), (LIMIT, PUBLISHED, ROUTED, FOLDED)),
            Table("narrow", (1024,), (8,), (LIMIT, PUBLISHED, ROUTED, FOLDED)),
        ),
        (1,),
        0,
        5,
    ),
    "narrow": Defaults((Table("narrow", (512, 1024), (8, 20)),), (1,), 0, 5),
    "flux-dev": Defaults((Table("flux-dev", (512, 1024, 2048), (1, 8, 20)),), (1, 4), 28, 5),
    "tiny": Defaults((Table("tiny", (128,), (1, 8, 20)),), (1,), 2, 3),
}


def parse_options(words: list[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """Parse a command line, by default this process's, and fill in `DEFAULTS`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="flux-dev needs CUDA (default: cpu)")
    parser.add_argument("--sides", type=whole(1), nargs="+", help="sides of the image in pixels (default: as above)")
    parser.add_argument("--entities", type=whole(1), nargs="+", help="numbers of regions (default: as above)")
    parser.add_argument("--batch", type=whole(1), nargs="+", help="batch sizes (default: 1; flux-dev: 1 4)")
    parser.add_argument("--rounds", type=whole(1), help="rounds after the first, uncounted one (default: 5)")
    parser.add_argument(
        "--image_steps", type=whole(0), help="steps of a whole image; 0 makes none (default: 0; flux-dev: 28)"
    )
    parser.add_argument("--dtype", choices=PRECISIONS, help="default: bf16, without bfloat16 instructions fp32")
    parser.add_argument("--clock", choices=CLOCKS, help="cpu: processor time (default: cpu; with CUDA: wall)")
    parser.add_argument("--threads", type=whole(1), default=1, help="threads on a CPU (default: %(default)s)")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="leave out these parts")
    parser.add_argument(
        "--readings",
        nargs="+",
        choices=READINGS,
        default=["entities", "captions"],
        help="kinds of growth (default: entities captions)",
    )
    parser.add_argument(
        "--output", type=user_path, help="file for the JSON line (default: benchmarks/results/step_SIZE.json)"
    )
    options = parser.parse_args(words)
    options.device = "cuda" if options.size == "flux-dev" else "cpu"
    defaults, first = DEFAULTS[options.size], DEFAULTS[options.size].tables[0]
    options.tables = list(defaults.tables)
    if options.sides or options.entities:
        options.tables = [
            Table(options.size, tuple(options.sides or first.sides), tuple(options.entities or first.entities))
        ]
    options.batch = options.batch or list(defaults.batch)
    options.rounds = options.rounds or defaults.rounds
    options.image_steps = defaults.image_steps if options.image_steps is None else options.image_steps
    options.dtype = options.dtype or ("bf16" if has_fast_bfloat16(options.device) else "fp32")
    options.clock = options.clock or ("cpu" if options.device == "cpu" else "wall")
    options.output = options.output or RESULTS / f"step_{options.size}.json"
    return options


def check(options: argparse.Namespace) -> None:
    """Raise UserError for what cannot be measured here; warn where the times mean little."""
    check_place(options.output)
    if options.size == "flux-dev" and not torch.cuda.is_available():
        raise UserError("--size flux-dev: no CUDA device was found; use a GPU with 60 GB, or --size cpu")
    if options.device == "cpu" and options.dtype == "bf16" and not has_fast_bfloat16("cpu"):
        print("this CPU has no bfloat16 instructions, so the times mean little", file=sys.stderr)
    if odd := [side for table in options.tables for side in table.sides if side % (4 * PATCH)]:
        raise UserError(f"--sides {odd[0]}: not a multiple of {4 * PATCH}; give multiples of {4 * PATCH}")
