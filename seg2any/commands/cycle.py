"""`cycle`: masks -> image -> masks, and image -> masks -> image, on one page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from seg2any.commands.segment_methods import DEFAULT, METHODS, NOTHING, MethodParser, method_in
from seg2any.system.allocator import let_segments_grow
from seg2any.system.arguments import call_of
from seg2any.system.console import exit_status, plain_messages, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path, model_name
from seg2any.system.threads import compute_on_idle_cores

ASKS = ("phrases", "points")
DESCRIPTION = """\
Makes an image of every layout in a folder, finds its regions again in that image, and compares. From a photo without a
layout it finds the regions first. The page shows masks, image and what was found again, the worst and the best; layouts
and images lie beside it. How far a segmenter can be believed, real photos beside their layouts show.
"""
EXAMPLES = """\
examples:
  the model in this repository makes the images, and its attention finds the regions
    {call} examples/shapes/masks --generator_lora examples/shapes/lora \\
        --pretrained_model_name_or_path examples/shapes/model

Exit status: 0 done, 1 out of memory, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line.

    Exit status: 0 done, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    given = parser_of(program, method_in(arguments)).parse_args(arguments)
    return exit_status(program, lambda: run(given))


def parser_of(program: str, method: str = DEFAULT) -> MethodParser:
    """Return the parser of the command line, with the flags of a method."""
    parser = MethodParser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    parser.method = method
    parser.add_argument("folder", type=input_path, metavar="FOLDER", help="layouts, photos, or both")
    parser.add_argument(
        "--method", choices=tuple(METHODS), default=DEFAULT, help="finds regions (default: %(default)s)"
    )
    parser.add_argument("--ask_by", choices=ASKS, default="phrases", help="for regions again (default: %(default)s)")
    parser.add_argument("--phrases", nargs="+", metavar="TEXT", help="of photos without a layout (default: everything)")
    parser.add_argument(
        "--generator",
        type=model_name,
        help="folder or hub id of the model that makes the images (default: --pretrained_model_name_or_path)",
    )
    parser.add_argument("--generator_lora", type=input_path, required=True, help="its folder with default/ and cond/")
    parser.add_argument("--num_inference_steps", type=whole(1), default=32, help="default: 32")
    parser.add_argument("--seed", type=whole(0), default=42, help="of the noise (default: 42)")
    parser.add_argument("--output_path", type=user_path, default=Path("cycle"), help="default: cycle")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, help="default: bf16, on a CPU fp32")
    METHODS[method].load().add_flags(parser.add_argument_group(f"--method {method}"))
    return parser


@plain_messages()
def run(given: Namespace) -> None:
    """Close the loop and write the page. Raises UserError."""
    method = METHODS[given.method]
    way = "phrases" if given.phrases else NOTHING
    for asked, flag in ((given.ask_by, f"--ask_by {given.ask_by}"), (way, "--phrases")):
        if asked not in method.takes and (asked != NOTHING):
            raise UserError(f"{flag}: --method {given.method} {method.lacks}; it takes {' or '.join(method.takes)}")
    method.load().check(given, way)
    if getattr(given, "sweep", None) is not None:
        raise UserError("--sweep: measures blocks and closes no loop; use it with seg2any segment")
    given.generator = given.generator or getattr(given, "pretrained_model_name_or_path", None)
    if given.generator is None:
        raise UserError(f"--generator: --method {given.method} makes no images; give the model that makes them")
    let_segments_grow()
    compute_on_idle_cores()
    from seg2any.commands.cycle_folder import run_cycle  # late: it takes seconds to import

    run_cycle(given, method.load())
