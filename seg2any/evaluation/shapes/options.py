"""The flags of `python -m seg2any.evaluation.shapes`, some of which the ablation shares.

Nothing heavy is imported, so that --help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.evaluation.program import add_machine_flags
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.files import user_path
from seg2any.system.shipped import input_path, model_name

SCENES = {"normal": 200, "crowded": 40}  # kind -> number of scenes of the test split
JUDGED = 12  # scenes on which the judges themselves are measured
SQUARE = (256, 256)  # height and width of their images
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.shapes --limit 8              a quick look at the model in this repository
    python -m seg2any.evaluation.shapes --lora runs/shapes/checkpoint-1000 --output result/mine
    python -m seg2any.evaluation.shapes --lora none --output result/plain    the base model, which sees no mask
    python -m seg2any.evaluation.shapes --sizes 192x320 384x256              the normal scenes in other sizes too
"""


@dataclass(frozen=True)
class CommonOptions:
    """The model, how its images are made, and their folder.

    lora          adapter folder; None: no adapters
    limit         scenes of each kind; None: all of `SCENES`
    seed          seed of the noise; every image derives its own from it
    device        None: the best one present
    weight_dtype  None: bf16 where the device computes fast in it, else fp32
    """

    model: str
    lora: Path | None
    output: Path
    limit: int | None
    seed: int
    num_inference_steps: int
    batch_size: int
    device: str | None
    weight_dtype: str | None
    overwrite: bool


@dataclass(frozen=True)
class Options(CommonOptions):
    """The scenes to measure.

    sizes   (H, W) in which the normal scenes are measured besides `SQUARE`
    judged  number of scenes, at most `limit`, on which the judges themselves are measured; 0: none
    """

    sizes: tuple[tuple[int, int], ...]
    judged: int = JUDGED

    @property
    def parts(self) -> list[tuple[str, tuple[int, int]]]:
        """List what is measured, each kind of scenes with its size."""
        return [(kind, SQUARE) for kind in SCENES] + [("normal", size) for size in self.sizes if size != SQUARE]


def parse_options(arguments: Sequence[str] | None = None, description: str = "") -> Options:
    """Parse a command line, by default this process's."""
    parser = Parser(
        prog="python -m seg2any.evaluation.shapes",
        description=description,
        epilog=EXAMPLES,
        parents=[shapes_flags("result/bench_shapes", 8)],
    )
    every = " and ".join(f"{count} {kind}" for kind, count in SCENES.items())
    parser.add_argument("--limit", type=whole(1), help=f"largest number of scenes of each kind (default: {every})")
    parser.add_argument(
        "--judged", type=whole(0), default=JUDGED, help="scenes on which the judges are measured (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=height_and_width,
        nargs="*",
        default=[],
        help="other sizes for the normal scenes, each as HEIGHTxWIDTH in pixels, multiples of 16 from 64 on",
    )
    given = vars(parser.parse_args(arguments))
    return Options(**given | {"sizes": tuple(dict.fromkeys(given["sizes"]))})


def height_and_width(text: str) -> tuple[int, int]:
    """Read a size such as 192x320. Raises ArgumentTypeError."""
    sides = tuple(int(part) for part in text.lower().split("x") if part.isdecimal() and part.isascii())
    if len(sides) != 2 or text.lower().count("x") != 1 or any(side < 64 or side % 16 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, in multiples of 16 from 64 on")
    return sides


def shapes_flags(output: str, batch_size: int) -> Parser:
    """Build a parent parser with the flags for the model, its images and their folder.

    `lora` is a Path or None.
    """
    parser = Parser(add_help=False)
    parser.add_argument(
        "--model",
        type=model_name,
        default="examples/shapes/model",
        help="FLUX pipeline folder (default: %(default)s)",
    )
    parser.add_argument(
        "--lora", type=adapters, default="examples/shapes/lora", help="adapter folder, or none (default: %(default)s)"
    )
    parser.add_argument("--output", type=user_path, default=output, help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=42, help="seed of the noise (default: %(default)s)")
    parser.add_argument(
        "--num_inference_steps", type=whole(1), default=20, help="denoising steps (default: %(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=whole(1), default=batch_size, help="images per batch (default: %(default)s)"
    )
    add_machine_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="make finished images again")
    return parser


def adapters(text: str) -> Path | None:
    """Read an adapter folder; None for the word none."""
    return None if text == "none" else input_path(text)
