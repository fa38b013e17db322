"""The command line of `python -m seg2any.data.sacap`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from seg2any.data.sacap.subset import PICKS
from seg2any.system.arguments import Parser
from seg2any.system.files import user_path

PROG = "python -m seg2any.data.sacap"
RAW = Path("data/SACap-1M/raw")

DESCRIPTION = """\
SACap-1M's images are a tenth of SA-1B, which comes as 1,000 tars of 10 GB. Three steps put them where training looks
for them:

  plan      finds the tars and bytes that a subset needs; writes an annotation file of the subset
  extract   copies its jpgs and jsons from the tars into data/SACap-1M/raw, checked; goes on after an interruption
  verify    checks the extracted files against the annotation file

Rows that cannot be trained on (a region without id or caption, no region, no name) are reported and left out by all
three.

Each has its own --help.
"""

PLAN = """\
Chooses rows of the annotation file and lists the tars of SA-1B they need. Without a choice: all rows.

Writes three files, or two:
  OUTPUT                  the chosen rows with all their columns: an annotation file again. `extract` and `verify` take
                          it, and a training on the subset: --data.train.params.seg_caption_path=OUTPUT
  OUTPUT's .tars.tsv      one line per tar: name, images, regions, bytes, path if the tar is at hand
  OUTPUT's .links.txt     with --links: the links of the tars that are needed and not at hand
"""
PLAN_EXAMPLES = f"""\
examples:
  everything: which tars, how much disk
    {PROG} plan data/SACap-1M/annotations/anno_train.parquet --output plan.parquet
  20,000 images from as few tars as possible, and the links to download just these
    {PROG} plan data/SACap-1M/annotations/anno_train.parquet --limit 20000 --links sa1b_links.txt \\
        --output data/SACap-1M/annotations/subset.parquet
  what the tars that are already here have, with exact sizes
    {PROG} plan data/SACap-1M/annotations/anno_train.parquet --tar_dir /tars --only_present --scan \\
        --output data/SACap-1M/annotations/subset.parquet
"""

EXTRACT = """\
Reads the tars (never changes them), and writes

  OUTPUT/sa_000000/sa_1.jpg     once it decodes to its end
  OUTPUT/sa_000000/sa_1.json    once it parses, has the size of the jpg and all masks that have a caption

A file gets its name only when it is whole, so a killed run goes on when started again: existing files are kept, and
tars with nothing left to extract are not opened. Only the last part of a member's name counts, and only names that the
annotation file has: nothing is written outside OUTPUT. Members before and behind the damage of a tar are found.
Tars can come and go: run it for those that are at hand, delete them, download the next.
"""
EXTRACT_EXAMPLES = f"""\
examples:
    {PROG} extract data/SACap-1M/annotations/subset.parquet --tar_dir /tars
  tars on two disks, eight at a time, a list of all problems
    {PROG} extract data/SACap-1M/annotations/anno_train.parquet --tar_dir /disk1 /disk2 --workers 8 \\
        --report problems.tsv
  on one machine of two
    {PROG} extract data/SACap-1M/annotations/anno_train.parquet --tar_dir /tars --groups 0-499
"""

VERIFY = """\
Reads every image that the annotation file names. It has to exist, its jpg to decode to the end, its json to parse and
to have the jpg's size and every captioned mask with run lengths that fit. Works on any folder of this form, also on
SA-1B tars that were unpacked as ROOT/sa_000000/. The test split has no groups: its images lie in ROOT itself.
"""
VERIFY_EXAMPLES = f"""\
examples:
    {PROG} verify data/SACap-1M/annotations/subset.parquet
  the test split
    {PROG} verify data/SACap-1M/annotations/anno_test.parquet --root data/SACap-1M/test
  remove what is broken and get it again
    {PROG} verify data/SACap-1M/annotations/subset.parquet --delete_broken
    {PROG} extract data/SACap-1M/annotations/subset.parquet --tar_dir /tars
  train on what is whole
    {PROG} verify data/SACap-1M/annotations/subset.parquet --output data/SACap-1M/annotations/whole.parquet
"""

STATUS = "\nExit status: 0 everything is whole, 1 something is missing or broken, 2 wrong input, 130 interrupted."


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default this process's; `command` is plan, extract or verify."""
    parser = Parser(prog=PROG, description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{plan,extract,verify}")
    _plan(_command(commands, "plan", PLAN, PLAN_EXAMPLES))
    _extract(_command(commands, "extract", EXTRACT, EXTRACT_EXAMPLES))
    _verify(_command(commands, "verify", VERIFY, VERIFY_EXAMPLES))
    options = parser.parse_args(arguments)
    if options.command == "plan" and (options.scan or options.only_present) and not options.tar_dir:
        parser.error("--scan and --only_present need --tar_dir")
    return options


def _command(commands: argparse._SubParsersAction, name: str, text: str, examples: str) -> Parser:
    command = commands.add_parser(
        name,
        description=text,
        epilog=examples + STATUS,
    )
    command.add_argument("annotations", type=user_path, help="SACap-1M's parquet file, or one written by `plan`")
    command.add_argument("--groups", help="only these tars: 0-99,123 or sa_000000-sa_000099,sa_000123 (default: all)")
    command.add_argument(
        "--workers", type=_positive, default=min(8, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    return command


def _plan(command: Parser) -> None:
    command.add_argument("--output", type=user_path, required=True, help="the plan, a parquet file")
    command.add_argument("--limit", type=_positive, help="images at most (default: all)")
    command.add_argument(
        "--pick", choices=PICKS, default="fewest_tars", help="which images --limit takes (default: fewest_tars)"
    )
    command.add_argument("--seed", type=int, default=0, help="for --pick random (default: 0)")
    command.add_argument(
        "--regions",
        type=int,
        nargs=2,
        default=(0, 1 << 30),
        metavar=("LEAST", "MOST"),
        help="only images with LEAST to MOST captioned masks",
    )
    command.add_argument(
        "--tar_dir", type=user_path, nargs="+", default=[], help="folders with the tars that are at hand"
    )
    command.add_argument("--only_present", action="store_true", help="only images of the tars in --tar_dir")
    command.add_argument(
        "--scan", action="store_true", help="read the tars' headers: exact sizes, lacking images, damaged tars"
    )
    command.add_argument(
        "--links", type=user_path, help="SA-1B's list of links; those of the tars still to fetch are written"
    )


def _extract(command: Parser) -> None:
    command.add_argument(
        "--tar_dir", type=user_path, nargs="+", required=True, help="folders with sa_000000.tar, sa_000001.tar, ..."
    )
    command.add_argument("--output", type=user_path, default=RAW, help="folder of the groups (default: %(default)s)")
    command.add_argument("--report", type=user_path, help="write every problem to this file, as a table with tabs")


def _verify(command: Parser) -> None:
    command.add_argument("--root", type=user_path, default=RAW, help="folder of the groups (default: %(default)s)")
    command.add_argument("--output", type=user_path, help="write the rows of the whole images to this parquet file")
    command.add_argument(
        "--delete_broken",
        action="store_true",
        help="remove jpg and json of broken images, so that extract gets them again",
    )
    command.add_argument("--report", type=user_path, help="write every problem to this file, as a table with tabs")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)
