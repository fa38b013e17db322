"""`segment --method sam3`: every instance of what short phrases name, by SAM 3."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from seg2any.system.arguments import Parser
from seg2any.system.console import real
from seg2any.system.shipped import model_name

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.segment.sam3 import Sam3Segmenter

SCORE = "The score is that of the surest instance, 0 to 1; 0 was not found."


def add_flags(parser: Parser) -> None:
    """Add the flags of the model."""
    parser.add_argument(
        "--sam3_model", type=model_name, default="facebook/sam3", help="folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--sure_instance", type=real(0, 1), default=0.5, help="least score (default: 0.5)")


def check(given: Namespace, way: str) -> None:
    """Accept every combination of flags."""


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model and the flag that changes what is found."""
    from seg2any.system.weights import known_weights  # late: it takes a while to import

    return {"segment": {"sure_instance": given.sure_instance}, "model": known_weights(given.sam3_model)}


def open_segmenter(given: Namespace, machine: Machine) -> Sam3Segmenter:
    """Load the model. Raises UserError."""
    from seg2any.segment.sam3 import Sam3Segmenter  # late: it takes seconds to import

    return Sam3Segmenter(given.sam3_model, machine.device, given.sure_instance)
