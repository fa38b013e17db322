"""`replay`: make an image again from the recipe inside it."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence

from seg2any.system.arguments import Parser, call_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.files import user_path
from seg2any.system.shipped import input_path, model_name
from seg2any.system.threads import COUNT, compute_on_all_cores

DESCRIPTION = """\
Make an image again from the recipe inside it. The new one is written beside the old one as NAME_replay.png and compared
with it. On the same machine with the same versions every pixel is equal; otherwise the differences are named: versions,
processor, threads. Layout, model and adapter are known by their digests: a changed one is refused.
"""
EXAMPLES = """\
examples:
  an image, with its layout in a folder beside it
    {call} result/five.png
  the layout, the model or the adapter have moved
    {call} five.png --seg_mask_path old/five.json --pretrained_model_name_or_path /models/FLUX.1-dev

Exit status: 0 equal, 1 made and different, or out of memory, 2 wrong input, 130 interrupted.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line; return 0 for an equal image, 1 for a different one, 2 for wrong input."""
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES.format(call=call_of(program)))
    parser.add_argument("image", type=user_path, help="an image that `generate` made, not a panel")
    parser.add_argument(
        "--seg_mask_path", type=input_path, help="its layout, or the folder with it (default: searched)"
    )
    parser.add_argument("--pretrained_model_name_or_path", type=model_name, help="the model (default: as recorded)")
    parser.add_argument("--base_parts", type=model_name, help="the other parts of a model in one file")
    parser.add_argument("--lora_ckpt_path", type=input_path, help="the adapters (default: as recorded)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: as recorded, if it is here)")
    given = parser.parse_args(arguments)
    return exit_status(program, lambda: run(given))


@plain_messages()
def run(given: Namespace) -> int:
    """Make the image again; return 0 if it is equal, else 1. Raises UserError."""
    from seg2any.generate.recorded import find_layouts, read_recorded
    from seg2any.system.device import check_device_name

    check_device_name(given.device)
    recorded = read_recorded(given.image)
    layouts = find_layouts(recorded, given.seg_mask_path)
    if isinstance(threads := recorded.made.get("threads"), int):
        os.environ.setdefault(COUNT, str(threads))
    compute_on_all_cores()
    from seg2any.generate.replay import Places, replay  # late: it takes seconds to import

    names = (given.pretrained_model_name_or_path, given.base_parts, given.lora_ckpt_path, given.device)
    return replay(recorded, layouts, Places(*names))
