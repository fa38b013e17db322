"""`segment --method xsam`: its flags, and the segmenter that they describe (X-SAM)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.errors import UserError
from seg2any.system.shipped import model_name

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.segment.xsam.segmenter import XSamSegmenter

SCORE = "The score is the model's probability that a region is what its name says; 0 was not found."
OWN = ("threshold", "bits", "batch", "max_new_tokens")


def add_flags(parser: Parser) -> None:
    """Add the flags of the model and of its answers."""
    parser.add_argument(
        "--pretrained_model_name_or_path",
        type=model_name,
        help="folder that convert-xsam or training has written, or examples/shapes/xsam; this method needs it",
    )
    parser.add_argument("--threshold", type=real(0, 1), default=0.5, help="of masks and categories (default: 0.5)")
    parser.add_argument(
        "--bits", choices=("16", "8", "4"), default="16", help="of the language model's weights (default: 16)"
    )
    parser.add_argument("--batch", type=whole(1), default=8, help="questions answered at once (default: 8)")
    parser.add_argument("--max_new_tokens", type=whole(1), default=512, help="of an answer (default: 512)")


def check(given: Namespace, way: str) -> None:
    """Raise UserError without a model."""
    if given.pretrained_model_name_or_path is None:
        raise UserError(
            "--pretrained_model_name_or_path: --method xsam needs a model; give the folder that `seg2any convert-xsam` "
            "writes of the published weights or that training has written, or examples/shapes/xsam, a small one"
        )


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model and the flags that change what is found. Raises UserError."""
    from seg2any.system.weights import weights_fingerprint

    name = given.pretrained_model_name_or_path
    folder = Path(name)
    model = {"path": name, "fingerprint": weights_fingerprint(folder, ("",))} if folder.is_dir() else {"id": name}
    return {"segment": {flag: getattr(given, flag) for flag in OWN}, "model": model}


def open_segmenter(given: Namespace, machine: Machine) -> XSamSegmenter:
    """Load the model. Raises UserError if it is none, and for --bits without bitsandbytes or a GPU."""
    from seg2any.generate.memory import check_bitsandbytes  # late, as the next: they take seconds to import
    from seg2any.segment.xsam.config import XSamConfig
    from seg2any.segment.xsam.folder import open_speaker, read_config
    from seg2any.segment.xsam.memory import predicted_line
    from seg2any.segment.xsam.segmenter import Choices, XSamSegmenter

    name = given.pretrained_model_name_or_path
    if given.bits != "16":
        check_bitsandbytes(f"--bits {given.bits}", machine.device, "--bits 16")
    if machine.device.type == "cuda":
        print(predicted_line(read_config(name, XSamConfig), given.batch))
    speaker = open_speaker(name, machine.device, machine.dtype, given.bits)
    return XSamSegmenter(speaker, Path(name).name, Choices(given.threshold, given.batch, given.max_new_tokens))
