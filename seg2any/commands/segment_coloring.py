"""`segment --method coloring`: its flags, and the segmenter that they describe (gen2seg)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from seg2any.commands.segment_flow import add_flow_flags, flow_identity, open_session
from seg2any.commands.segment_methods import NOTHING
from seg2any.system.arguments import Parser
from seg2any.system.console import real
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.segment.coloring.segmenter import ColoringSegmenter

SCORE = "The score compares colours inside and outside of a region: 0.5 says nothing, 1 is sure, 0 was not found."
OWN = ("legend", "painter", "point_width", "threshold", "apart", "least_share", "side", "guidance_scale")


def add_flags(parser: Parser) -> None:
    """Add the flags of colours and of the model that paints."""
    parser.add_argument(
        "--legend", metavar="TEXT", help='phrases with colours of your choice: "a red star: blue; a ring: green"'
    )
    parser.add_argument(
        "--painter",
        metavar="MODEL",
        help="a published network instead of adapters: reachomk/gen2seg-sd, reachomk/gen2seg-mae-h, or its folder",
    )
    parser.add_argument(
        "--point_width", type=real(0), default=0.01, help="width of a point, share of a side (default: 0.01)"
    )
    parser.add_argument(
        "--threshold", type=real(0, 255), default=3, help="likeness of a point's region, 0 to 255 (default: 3)"
    )
    parser.add_argument(
        "--apart", type=real(0), default=80, help="grey levels between regions without names (default: 80)"
    )
    parser.add_argument(
        "--least_share", type=real(0, 1), default=0.01, help="of the image, for a region without a name (default: 0.01)"
    )
    add_flow_flags(parser, side="that of training", guidance=1.0)


def check(given: Namespace, way: str) -> None:
    """Raise UserError for missing adapters, and for a legend that is malformed or stands beside other questions."""
    from seg2any.segment.coloring.paints import Legend  # late: it imports numpy

    if (given.lora_ckpt_path is None) == (given.painter is None):
        raise UserError(
            "--lora_ckpt_path, --painter: --method coloring needs one of them; give the adapters of task coloring, or "
            "a published painter"
        )
    if given.painter is not None and (way == "phrases" or given.legend is not None):
        raise UserError("--painter: the published painters read no words; give --points or no names")
    if given.legend is not None:
        Legend.parse(given.legend)
        if way != NOTHING:
            raise UserError(f"--legend and --{way}: each asks for regions in its own way; give one of them")


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model and the flags that change what is found. Raises UserError."""
    own = {"segment": {name: getattr(given, name) for name in OWN}}
    return own if given.painter is not None else {**own, **flow_identity(given)}


def open_segmenter(given: Namespace, machine: Machine) -> ColoringSegmenter:
    """Load the model and its adapters, or a published painter. Raises UserError for adapters that make images."""
    from seg2any.generate.model import read_adapter_card  # late: they take seconds to import
    from seg2any.segment.coloring.automatic import AutomaticSettings
    from seg2any.segment.coloring.painter import Painter, check_painting
    from seg2any.segment.coloring.paints import Legend
    from seg2any.segment.coloring.points import PointSettings
    from seg2any.segment.coloring.segmenter import Choices, ColoringSegmenter

    choices = Choices(
        PointSettings(given.point_width, given.threshold),
        AutomaticSettings(given.least_share, given.apart),
        legend=None if given.legend is None else Legend.parse(given.legend),
    )
    if given.painter is not None:
        from seg2any.segment.coloring.published import open_published

        return ColoringSegmenter(open_published(given.painter, machine.device), choices, f"colours of {given.painter}")
    card = check_painting(read_adapter_card(given.lora_ckpt_path))
    painter = Painter(open_session(given, machine).pipeline.base, card, given.side, given.guidance_scale)
    choices = replace(choices, entries=card.legend_entries)
    return ColoringSegmenter(painter, choices, f"colours of {given.lora_ckpt_path}")
