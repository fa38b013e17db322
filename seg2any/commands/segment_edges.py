"""`segment --method edges`: its flags, and the segmenter that they describe (TRACE's idea)."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from seg2any.commands.segment_flow import add_flow_flags, flow_identity, open_session
from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.bases.base import Base
    from seg2any.generate.choices import Machine
    from seg2any.segment.edges import EdgeSegmenter
    from seg2any.segment.probe import ProbeSettings

SCORE = "The score compares the divergence on a region's outline and inside: 0.5 says nothing, 1 is sure."
OWN = ("threshold", "blocks", "side", "noise_level", "seeds", "guidance_scale")
TEXT_TOKENS = 64  # of the empty text beside the image


def add_flags(parser: Parser) -> None:
    """Add the flags of the search for edges and of its model."""
    parser.add_argument(
        "--threshold", type=real(0), default=0.06, help="divergence that parts neighbouring tokens (default: 0.06)"
    )
    parser.add_argument("--blocks", nargs="+", type=whole(0), help="read attention here (default: 2 on shapes)")
    parser.add_argument("--noise_level", type=real(0, 1), help="0 to 1 (default: 0.1)")
    parser.add_argument("--seeds", nargs="+", type=whole(0), default=[0], help="of the noise, averaged (default: 0)")
    add_flow_flags(parser)


def check(given: Namespace, way: str) -> None:
    """Accept every combination of flags."""


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model and the flags that change what is found. Raises UserError."""
    return {"segment": {name: getattr(given, name) for name in OWN}, **flow_identity(given)}


def open_segmenter(given: Namespace, machine: Machine) -> EdgeSegmenter:
    """Load the model. Raises UserError for blocks that it lacks, or that nobody knows."""
    from seg2any.segment.edges import EdgeSegmenter  # late: it takes seconds to import

    base = open_session(given, machine).pipeline.base
    return EdgeSegmenter(base, probe_settings(given, base), given.threshold)


def probe_settings(given: Namespace, base: Base) -> ProbeSettings:
    """Fill in blocks and side by what is known about the model. Raises UserError if nothing is known."""
    from seg2any.segment.probe import ProbeSettings

    known = base.probing
    blocks = given.blocks or (known and known.parting)
    if not blocks:
        raise UserError("--blocks: nobody has measured which blocks of this model part instances; give numbers")
    if not (given.side or known):
        raise UserError("--side: nobody has measured this model; give the edge of its images in pixels")
    side = given.side or known.side
    return ProbeSettings(
        tuple(blocks), side, given.noise_level, tuple(given.seeds), given.guidance_scale, text_tokens=TEXT_TOKENS
    )
