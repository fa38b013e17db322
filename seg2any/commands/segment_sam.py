"""`segment --method sam`: all regions of an image by SAM 2 or SAM 3, without names."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.shipped import model_name

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.segment.sam_automatic import AutomaticSam

SCORE = "The score is the IoU with the true region that SAM expects of its mask."
OWN = ("sam_model", "per_side", "sure", "stable")


def add_flags(parser: Parser) -> None:
    """Add the flags of the search for all regions."""
    parser.add_argument(
        "--sam_model",
        type=model_name,
        default="facebook/sam2.1-hiera-large",
        help="folder or hub id of a SAM 2 or SAM 3 (default: %(default)s)",
    )
    parser.add_argument("--per_side", type=whole(1, 256), default=32, help="points along each side (default: 32)")
    parser.add_argument("--sure", type=real(0, 1), default=0.8, help="least IoU that SAM expects (default: 0.8)")
    parser.add_argument("--stable", type=real(0, 1), default=0.95, help="least stability of a mask (default: 0.95)")


def check(given: Namespace, way: str) -> None:
    """Accept every combination of flags."""


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model by its name, and the flags that change what is found."""
    return {"segment": {name: getattr(given, name) for name in OWN}}


def open_segmenter(given: Namespace, machine: Machine) -> AutomaticSam:
    """Load the model. Raises UserError."""
    from seg2any.segment.sam_automatic import AutomaticSam, GridSettings  # late: it takes seconds to import

    settings = GridSettings(given.per_side, given.sure, given.stable)
    return AutomaticSam(given.sam_model, machine.device, settings)
