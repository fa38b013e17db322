"""`annotate`: photos in, a data set for training out, by the rules of SACap-1M."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seg2any.commands.caption_flags import ENDPOINT, PHRASES, add_caption_flags, check_captions
from seg2any.commands.segment_methods import METHODS
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages, real, whole
from seg2any.system.errors import Incomplete, UserError
from seg2any.system.files import check_folder, user_path
from seg2any.system.shipped import input_path, model_name

if TYPE_CHECKING:
    from seg2any.annotate.plan import Plan
    from seg2any.annotate.run import Summary

SA1B = "sa1b"
ADVICE = "the photos annotated so far are kept, start again to go on"
DESCRIPTION = """\
Photos in, a data set as SACap-1M out: masks and captions of regions, chosen by the rules of its paper.

  1  size, aspect        photos that are too small, too large or too long are dropped
  2  near duplicates     of photos that look alike the largest stays
  3  aesthetics          with --aesthetic_head: photos that score low are dropped
  4  masks               --masks sa1b: NAME.json beside NAME.jpg; or a method of `segment`
  5  top level           masks inside larger ones are left out
  6  area                small masks are left out
  7  number              photos with too few or too many masks are dropped
  8  captions            --captions endpoint, local, phrases or file: for each region, and for the photo

Into the output folder go annotations.parquet and raw/ (photos, each with its JSON), which training reads as they are;
left_out.tsv says for every other photo which rule dropped it, or what failed in which file; card.md describes the set.

What follows -- are flags of `seg2any segment` for the method of --masks, see `seg2any segment --method NAME --help`.
"""
EXAMPLES = """\
examples:
  photos and masks of SA-1B, captions from a model that vLLM serves
    {call} sa_000000 --masks sa1b --captions endpoint --endpoint http://localhost:8000/v1 \\
        --caption_model Qwen/Qwen3-VL-8B-Instruct --output data/my_set
  my own photos: all regions by SAM 2, captions by a model in this process
    {call} my_photos --masks sam --captions local --output data/my_set
  offline with the model in this repository: the regions of names, which are the captions
    {call} my_photos --masks attention --captions phrases --min_side 256 --output data/my_set \\
        -- --pretrained_model_name_or_path examples/shapes/model --phrases "a red star" "a ring"
  on a cluster of Ray, whose nodes all see data/
    {call} data/photos --masks sam --captions endpoint --engine ray --ray_address auto --models 8 --output data/my_set
  train on it
    seg2any train config/seg2any_sacap_1m.yaml --data.train.params.image_root=data/my_set/raw \\
        --data.train.params.seg_caption_path=data/my_set/annotations.parquet

A run that was stopped or killed goes on when started again: no record is lost or doubled. What failed is tried again.
Exit status: 0 done, 1 done but for photos that failed, 2 wrong input, 128 + N ended by signal N (Ctrl-C: 130).
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line.

    Exit status: 0 done, 1 done but for photos that failed, 2 wrong input, 130 interrupted.
    """
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    given = parser_of(program).parse_args(words[:split])
    return exit_status(program, lambda: run(given, words[split + 1 :]), ADVICE)


@plain_messages()
def run(given: Namespace, rest: Sequence[str]) -> None:
    """Make the set, and print what became of all photos.

    rest  flags of `segment`

    Raises UserError, and Incomplete if photos failed.
    """
    check(given, rest)
    from seg2any.annotate.run import make_set, start_anew  # late: they take seconds to import
    from seg2any.commands.annotate_plan import engine_of, plan_of

    plan = plan_of(given, rest)
    if plan.predictor is None:
        print("aesthetics: no photo is scored or dropped by score; give --aesthetic_head for that", flush=True)
    if given.overwrite:
        start_anew(given.output)
    report(plan, make_set(plan, given.images, engine_of(given, plan)))


def report(plan: Plan, summary: Summary) -> None:
    """Print the numbers of a set, and how to train on it. Raises Incomplete if photos failed."""
    from seg2any.annotate.card import CARD
    from seg2any.annotate.output import RAW, TABLE
    from seg2any.annotate.run import LEFT_OUT

    dropped = ", ".join(f"{count:,} by {rule}" for rule, count in summary.dropped.most_common())
    print(f"{summary.kept:,} photos are in {plan.root / TABLE}; dropped: {dropped or 'none'}")
    print(f"card: {plan.root / CARD}")
    table = f"--data.train.params.seg_caption_path={plan.root / TABLE}"
    print(f"seg2any train config/seg2any_sacap_1m.yaml {table} --data.train.params.image_root={plan.root / RAW}")
    if summary.failed:
        first = summary.failed[0]
        raise Incomplete(
            f"{len(summary.failed):,} photos failed, the first is {first.key} in {first.reason}: {first.detail}; "
            f"{plan.root / LEFT_OUT} has all; start again to try them again"
        )


def check(given: Namespace, rest: Sequence[str]) -> None:
    """Raise UserError for flags that contradict each other, before anything is loaded."""
    check_folder(given.output, "--output")
    if given.masks == SA1B and rest:
        raise UserError(f"-- {rest[0]}: --masks {SA1B} takes no flags of segment; leave them out, or choose a method")
    if given.captions == PHRASES and given.masks == SA1B:
        raise UserError(f"--captions {PHRASES}: the masks of --masks {SA1B} have no names; choose other captions")
    check_captions(given)
    if given.min_masks > given.max_masks:
        raise UserError(f"--min_masks {given.min_masks}: is more than --max_masks {given.max_masks}; change one")
    inside = [one for one in given.images if given.output.resolve().is_relative_to(one.resolve())]
    if inside:
        raise UserError(
            f"--output {given.output}: lies in {inside[0]}, where photos are looked for; choose another folder"
        )


def parser_of(program: str) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    parser.add_argument("images", nargs="+", type=input_path, metavar="IMAGES", help="photos, or folders of them")
    parser.add_argument("--output", type=user_path, required=True, help="folder of the set")
    parser.add_argument("--masks", choices=(SA1B, *METHODS), default=SA1B, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run has made, and start anew")
    parser.add_argument(
        "--photos", choices=("copy", "link"), default="copy", help="how photos get into raw/ (default: %(default)s)"
    )
    _add_rules(parser)
    add_caption_flags(parser, ENDPOINT, "phrases: those of the method of --masks (default: endpoint)")
    _add_engine(parser)
    return parser


def _add_rules(parser: Parser) -> None:
    rules = parser.add_argument_group("rules", "numbers that are not published are ours; see docs/annotate.md")
    rules.add_argument("--min_side", type=whole(1), default=512, help="pixels of the shorter edge (default: 512)")
    rules.add_argument("--max_side", type=whole(1), default=8192, help="pixels of the longer edge (default: 8192)")
    rules.add_argument("--max_aspect", type=real(1), default=3.0, help="longer by shorter edge (default: 3)")
    rules.add_argument(
        "--hash_distance", type=whole(-1, 63), default=4, help="bits of 64 that differ in copies; -1: off (default: 4)"
    )
    rules.add_argument("--aesthetic_head", type=user_path, metavar="FILE", help="LAION's head (default: no scores)")
    rules.add_argument(
        "--aesthetic_clip",
        type=model_name,
        default="openai/clip-vit-large-patch14",
        help="folder or hub id of its CLIP (default: %(default)s)",
    )
    rules.add_argument("--min_aesthetic", type=real(-100), default=5.0, help="least score, published: 5 (default: 5)")
    rules.add_argument(
        "--nested", type=real(0.5), default=0.9, help="share inside a larger mask; above 1: keep all (default: 0.9)"
    )
    rules.add_argument(
        "--min_area",
        type=real(0, 1),
        default=0.01,
        help="share of the photo (default: 0.01, a reading of the paper that no published code confirms)",
    )
    rules.add_argument("--min_masks", type=whole(1, 63), default=1, help="published: 1 (default: 1)")
    rules.add_argument("--max_masks", type=whole(1, 63), default=20, help="published: 20 (default: 20)")


def _add_engine(parser: Parser) -> None:
    engine = parser.add_argument_group("where it runs")
    engine.add_argument("--workers", type=whole(1), help="processes (default: one a core; 1 if they load networks)")
    engine.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    engine.add_argument("--engine", choices=("processes", "ray"), default="processes", help="default: %(default)s")
    engine.add_argument("--ray_address", help="of the cluster's head, or auto (default: a cluster on this machine)")
    engine.add_argument("--models", type=whole(1), default=1, help="ray: actors that hold networks (default: 1)")
    engine.add_argument("--gpus", type=real(0), help="ray: GPUs of such an actor (default: 1 if the cluster has any)")
    engine.add_argument("--questioners", type=whole(1), default=4, help="ray: actors that ask (default: 4)")
