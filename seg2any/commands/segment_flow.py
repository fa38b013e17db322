"""Open a model that makes images, to find regions with it: flags, identity and session that methods share."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.shipped import input_path, model_name

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.generate.session import Session


def add_flow_flags(parser: Parser, side: str = "1024", guidance: float = 3.5) -> None:
    """Add the flags that name a model that makes images, and how it is run.

    side, guidance  the defaults: the first as --help says it
    """
    parser.add_argument(
        "--pretrained_model_name_or_path",
        type=model_name,
        default="black-forest-labs/FLUX.1-dev",
        help="folder or hub id of a FLUX pipeline, or a file with its transformer (default: FLUX.1-dev)",
    )
    parser.add_argument("--base_parts", type=model_name, help="of a base in one file: the pipeline of its other parts")
    parser.add_argument("--lora_ckpt_path", type=input_path, help="folder with default/ and cond/ (default: none)")
    parser.add_argument("--side", type=whole(1), help=f"images count as about SIDE x SIDE pixels (default: {side})")
    parser.add_argument(
        "--guidance_scale", type=real(0), default=guidance, help="distilled guidance (default: %(default)s)"
    )
    parser.add_argument("--memory", choices=MEMORY_MODES, default="full", help="default: full")


def flow_identity(given: Namespace) -> dict:
    """Identify the model and the adapter of the flags. Raises UserError."""
    from seg2any.generate.model import known_adapter, known_model  # late, as below: both take seconds to import

    return {
        "model": known_model(given.pretrained_model_name_or_path, given.base_parts),
        "adapter": given.lora_ckpt_path and known_adapter(given.lora_ckpt_path),
    }


def open_session(given: Namespace, machine: Machine) -> Session:
    """Load the model and, if one is named, an adapter. Raises UserError."""
    from seg2any.generate.model import read_adapter_card
    from seg2any.generate.session import Loading, Session

    read_adapter_card(given.lora_ckpt_path)
    loading = Loading(given.lora_ckpt_path, memory=given.memory, base_parts=given.base_parts)
    return Session.open(given.pretrained_model_name_or_path, machine.dtype, machine.device, loading)
