"""`layouts`: convert layouts from and to the formats of other programs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from seg2any.layout.carried import FORMATS
from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages, whole
from seg2any.system.files import user_path
from seg2any.system.shipped import input_path

DESCRIPTION = """\
Convert a layout, or a folder of them. Read are all formats of `generate` (colour maps, masks, COCO, SA-1B, panoptic,
npz), JSON of labelme, XML of CVAT for images 1.1, folders of ADE20K, and the prompts with boxes of FLUX 3 and
Ideogram 4. What a format has no place for is named.

  json     NAME.json with NAME.png, the published form   npz      everything a layout has
  coco     NAME.json with run lengths                     labelme  NAME.json with masks
  cvat     annotations.xml for all images                 ade      annotations/NAME.png with numbers of classes
  flux3    NAME.txt, a prompt with boxes                  ideogram4  NAME.json, a prompt with boxes
"""
EXAMPLES = """\
examples:
  what was drawn in labelme, for generate
    {call} convert my_labelme my_layouts --to json
  one layout, to be corrected in CVAT
    {call} convert five.json five.xml --to cvat
  classes of ADE20K, as regions with captions
    {call} convert ADEChallengeData2016 my_layouts --to npz
  the boxes of layouts, as a prompt for FLUX 3, and back for images of 1344x768
    {call} convert my_layouts my_prompts --to flux3
    {call} convert my_prompts my_boxes --to npz --width 1344 --height 768

Exit status: 0 done, 2 wrong input; files that exist are never overwritten.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line; return 0, or 2 for wrong input."""
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    commands = parser.add_subparsers(dest="command", required=True, metavar="convert")
    convert = commands.add_parser(
        "convert", description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)), help="convert layouts"
    )
    convert.add_argument("source", type=input_path, metavar="IN", help="a layout, or a folder of them")
    convert.add_argument("target", type=user_path, metavar="OUT", help="a file for one layout, or a folder")
    convert.add_argument("--to", required=True, choices=tuple(FORMATS), help="the format to write")
    for name, side in zip(("height", "width"), (1024, 1024), strict=True):
        text = f"{name} of layouts read from prompts, which hold no size (default: {side})"
        convert.add_argument(f"--{name}", type=whole(1), default=side, help=text)
    given = parser.parse_args(arguments)
    return exit_status(program, lambda: run(given))


@plain_messages()
def run(given: Namespace) -> None:
    """Convert, and print a line for each file and for each thing that is lost. Raises UserError."""
    from seg2any.data.label_maps import read_class_captions
    from seg2any.layout.convert import convert

    size = given.height, given.width
    for line in convert(given.source, given.target, given.to, read_class_captions("ade20k"), size):
        print(line)
