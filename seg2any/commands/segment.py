"""`segment`: masks out of images, as layouts that `generate` takes in."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from seg2any.commands.caption_flags import add_caption_flags
from seg2any.commands.segment_captions import check_captions_of
from seg2any.commands.segment_methods import DEFAULT, METHODS, MethodParser, method_in
from seg2any.commands.segment_prompt import points
from seg2any.system.allocator import let_segments_grow
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.files import user_path
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path
from seg2any.system.threads import compute_on_idle_cores

ADVICE = "the layouts written so far are complete, start again to go on"
DESCRIPTION = """\
Images in, layouts out: masks with captions, found by one of several methods.

{methods}

  --phrases "a red star" "a ring"    a mask for each phrase; masks may overlap
  --categories sky sea               a name for every pixel; a file has one name a line
  --points 0.5,0.25 0.1,0.9+0.2,0.8  a mask for each point, or for points joined by +
  none of them                       regions without names

Into the output folder go NAME.json with NAME.png (or npz, or COCO), overlays/NAME.png and report.md. The flags of a
method are listed by --method NAME --help.
"""
EXAMPLES = """\
examples:
  the model in this repository: runs on any machine, offline
    {call} my_photos --pretrained_model_name_or_path examples/shapes/model --phrases "a red star" "a ring"
  a language model that segments, small and offline too: phrases, --describe, or --ask with a question
    {call} my_photos --method xsam --pretrained_model_name_or_path examples/shapes/xsam --phrases "the largest star"
  FLUX.1-dev, every pixel named, what is none of it left out
    {call} my_photos --categories classes.txt --background background --output_path found
  photos become a set for training: what names name, or all regions with texts by a model that vLLM serves
    {call} my_photos --phrases "a red star" "a ring" --captions phrases
    {call} my_photos --method sam --captions endpoint --endpoint http://localhost:8000/v1 --caption_model NAME
  which blocks and noise levels follow the regions of known layouts best
    {call} my_photos --sweep my_layouts

An interrupted run goes on where it stopped when started again: finished images are skipped.
Exit status: 0 done, 1 out of memory, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line.

    Exit status: 0 done, 1 out of memory, 2 wrong input or an image that cannot be used, 130 interrupted.
    """
    given = parser_of(program, method_in(arguments)).parse_args(arguments)
    return exit_status(program, lambda: run(given), ADVICE)


@plain_messages()
def run(given: Namespace) -> None:
    """Find the regions of every image, or measure blocks and noise levels. Raises UserError."""
    method = METHODS[given.method]
    way = method.check(given.method, given)
    method.load().check(given, way)
    check_captions_of(given, way)
    let_segments_grow()
    compute_on_idle_cores()
    if getattr(given, "sweep", None) is not None:
        from seg2any.commands.segment_sweep import run_sweep  # late: both take seconds to import

        return run_sweep(given)
    from seg2any.commands.segment_folder import run_folder

    return run_folder(given, method.load())


def parser_of(program: str, method: str = DEFAULT) -> Parser:
    """Return the parser of the command line, with the flags of a method."""
    width = max(map(len, METHODS))
    methods = "\n".join(f"  --method {name:<{width}}  {one.text}" for name, one in METHODS.items())
    about = DESCRIPTION.format(methods=methods)
    parser = MethodParser(prog=program, description=about, epilog=EXAMPLES.format(call=call_of(program)))
    parser.method = method
    parser.add_argument("images", nargs="+", type=input_path, metavar="IMAGES", help="photos, or folders of them")
    parser.add_argument("--method", choices=tuple(METHODS), default=DEFAULT, help="default: %(default)s")
    parser.add_argument("--phrases", nargs="+", metavar="TEXT", help="what to find, a mask for each")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="names for all pixels, or a file of them")
    parser.add_argument("--points", nargs="+", type=points, metavar="X,Y", help="shares of width and height, 0 to 1")
    parser.add_argument("--describe", action="store_true", help="a caption of the image, with a mask for each phrase")
    parser.add_argument("--ask", metavar="QUESTION", help="a question whose answer is regions")
    parser.add_argument("--output_path", type=user_path, default=Path("segmented"), help="default: segmented")
    parser.add_argument("--format", choices=("json", "npz", "coco"), default="json", help="default: json, with png")
    parser.add_argument("--overwrite", action="store_true", help="find regions again where they are known")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, help="default: bf16, on a CPU fp32")
    add_caption_flags(parser, None, "for training: texts in place of the names of regions (default: the names)")
    METHODS[method].load().add_flags(parser.add_argument_group(f"--method {method}"))
    return parser
