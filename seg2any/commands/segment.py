"""`segment`: masks out of images, as layouts that `generate` takes in."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.system.allocator import let_segments_grow
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages, real, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path, model_name
from seg2any.system.threads import compute_on_idle_cores

METHODS = ("attention",)
ADVICE = "the layouts written so far are complete, start again to go on"
DESCRIPTION = """\
Images in, layouts out: masks with captions, found by the attention of the model that makes images (Seg4Diff). Nothing
is trained, and no other model is needed.

  --phrases "a red star" "a ring"    a mask for each phrase; masks may overlap
  --categories sky sea               a name for every pixel; a file has one name a line
  neither                            regions without names

Into the output folder go NAME.json with NAME.png (or npz, or COCO), overlays/NAME.png and report.md.
"""
EXAMPLES = """\
examples:
  the model in this repository: runs on any machine, offline
    {call} my_photos --pretrained_model_name_or_path examples/shapes/model --phrases "a red star" "a ring"
  FLUX.1-dev, every pixel named, what is none of it left out
    {call} my_photos --categories classes.txt --background background --output_path found
  which blocks and noise levels follow the regions of known layouts best
    {call} my_photos --sweep my_layouts

An interrupted run goes on where it stopped when started again: finished images are skipped.
Exit status: 0 done, 1 out of memory, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line.

    Exit status: 0 done, 1 out of memory, 2 wrong input or an image that cannot be used, 130 interrupted.
    """
    given = parser_of(program).parse_args(arguments)
    return exit_status(program, lambda: run(given), ADVICE)


@plain_messages()
def run(given: Namespace) -> None:
    """Find the regions of every image, or measure blocks and noise levels. Raises UserError."""
    check(given)
    let_segments_grow()
    compute_on_idle_cores()
    if given.sweep is not None:
        from seg2any.commands.segment_sweep import run_sweep  # late: both take seconds to import

        return run_sweep(given)
    from seg2any.commands.segment_folder import run_folder

    return run_folder(given)


def check(given: Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    asked = [f"--{name}" for name in ("phrases", "categories", "points") if getattr(given, name)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: each asks for regions in its own way; give one of them")
    if given.points:
        raise UserError(f"--points: --method {given.method} reads texts only; give --phrases, --categories or neither")
    if given.background is not None and not asked and given.sweep is None:
        raise UserError("--background: there are no other phrases to compare with; give --phrases or --categories")


def parser_of(program: str) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    parser.add_argument("images", nargs="+", type=input_path, metavar="IMAGES", help="photos, or folders of them")
    parser.add_argument("--method", choices=METHODS, default="attention", help="default: attention")
    parser.add_argument("--phrases", nargs="+", metavar="TEXT", help="what to find, a mask for each")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="names for all pixels, or a file of them")
    parser.add_argument("--points", nargs="+", type=point, metavar="X,Y", help="shares of width and height, 0 to 1")
    parser.add_argument("--background", metavar="TEXT", help="a phrase for what is no region (default: none)")
    parser.add_argument("--threshold", type=real(0, 1), default=0.5, help="of a phrase's map, 0 to 1 (default: 0.5)")
    parser.add_argument(
        "--merging", type=real(0), default=0.1, help="divergence of maps that become one region (default: 0.1)"
    )
    parser.add_argument("--output_path", type=user_path, default=Path("segmented"), help="default: segmented")
    parser.add_argument("--format", choices=("json", "npz", "coco"), default="json", help="default: json, with png")
    parser.add_argument("--overwrite", action="store_true", help="find regions again where they are known")
    parser.add_argument("--sweep", type=input_path, metavar="LAYOUTS", help="measure blocks and noise levels instead")
    _add_model(parser)
    return parser


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--pretrained_model_name_or_path",
        type=model_name,
        default="black-forest-labs/FLUX.1-dev",
        help="folder or hub id of a FLUX pipeline, or a file with its transformer (default: FLUX.1-dev)",
    )
    parser.add_argument("--base_parts", type=model_name, help="of a base in one file: the pipeline of its other parts")
    parser.add_argument("--lora_ckpt_path", type=input_path, help="folder with default/ and cond/ (default: none)")
    parser.add_argument(
        "--blocks", nargs="+", type=whole(0), help="read attention here (default: 12 17 on FLUX.1-dev, 0 on shapes)"
    )
    parser.add_argument("--side", type=whole(1), help="images count as about SIDE x SIDE pixels (default: 1024)")
    parser.add_argument(
        "--noise_level", type=real(0, 1), help="0 to 1 (default: of step 21 of 28, 0.56 for FLUX.1-dev at 1024 px)"
    )
    parser.add_argument("--seeds", nargs="+", type=whole(0), default=[0], help="of the noise, averaged (default: 0)")
    parser.add_argument("--guidance_scale", type=real(0), default=3.5, help="distilled guidance (default: 3.5)")
    parser.add_argument("--text_tokens", type=whole(2, 512), default=512, help="read at a time (default: 512)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, help="default: bf16, on a CPU fp32")
    parser.add_argument("--memory", choices=MEMORY_MODES, default="full", help="default: full")


def point(text: str) -> tuple[float, float]:
    """Parse a point X,Y of shares, for argparse."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no point; give X,Y such as 0.5,0.25") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f"{text} lies outside the image; give shares of width and height, 0 to 1")
    return x, y
