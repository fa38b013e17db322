"""`segment --method attention`: its flags, and the segmenter that they describe (Seg4Diff)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from seg2any.commands.segment_flow import add_flow_flags, flow_identity, open_session
from seg2any.commands.segment_methods import NOTHING
from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.errors import UserError
from seg2any.system.shipped import input_path

if TYPE_CHECKING:
    from seg2any.bases.base import Base
    from seg2any.generate.choices import Machine
    from seg2any.segment.attention import AttentionSegmenter
    from seg2any.segment.mask_head import Learned
    from seg2any.segment.probe import ProbeSettings

SCORE = "The score compares attention inside and outside of a region: 0.5 says nothing, 1 is sure, 0 was not found."
OWN = ("background", "threshold", "merging", "blocks", "side", "noise_level", "seeds", "guidance_scale", "text_tokens")


def add_flags(parser: Parser) -> None:
    """Add the flags of the probe and of its model."""
    parser.add_argument("--background", metavar="TEXT", help="a phrase for what is no region (default: none)")
    parser.add_argument("--threshold", type=real(0, 1), default=0.5, help="of a phrase's map, 0 to 1 (default: 0.5)")
    parser.add_argument(
        "--merging", type=real(0), default=0.1, help="divergence of maps that become one region (default: 0.1)"
    )
    parser.add_argument("--base", choices=("flux1", "sd3"), default="flux1", help="kind of the model (default: flux1)")
    parser.add_argument("--masks_lora", type=input_path, help="of sd3: the published lora_weights.pth (default: none)")
    parser.add_argument("--sweep", type=input_path, metavar="LAYOUTS", help="measure blocks and noise levels instead")
    parser.add_argument(
        "--blocks",
        nargs="+",
        type=whole(0),
        help="read attention here (default: as the adapter learned, else 12 17 on FLUX.1-dev, 0 on shapes)",
    )
    parser.add_argument(
        "--noise_level", type=real(0, 1), help="0 to 1 (default: of step 21 of 28, 0.56 for FLUX.1-dev at 1024 px)"
    )
    parser.add_argument("--seeds", nargs="+", type=whole(0), default=[0], help="of the noise, averaged (default: 0)")
    parser.add_argument("--text_tokens", type=whole(2, 512), default=512, help="read at a time (default: 512)")
    add_flow_flags(parser)


def check(given: Namespace, way: str) -> None:
    """Raise UserError for a background that nothing is compared with, and for flags of another kind of model."""
    if given.base == "sd3" and given.lora_ckpt_path is not None:
        raise UserError("--lora_ckpt_path: adapters are for FLUX; give --masks_lora with --base sd3")
    if given.base == "sd3" and (given.sweep is not None or given.base_parts or given.memory != "full"):
        raise UserError("--base sd3: takes no --sweep, --base_parts and --memory; leave them out")
    if given.base != "sd3" and given.masks_lora is not None:
        raise UserError("--masks_lora: is a file for Stable Diffusion 3; give --base sd3, too")
    if given.background is not None and way == NOTHING and given.sweep is None:
        raise UserError("--background: there are no other phrases to compare with; give --phrases or --categories")


def identity(given: Namespace, machine: Machine) -> dict:
    """Identify the model and the flags that change what is found. Raises UserError."""
    from seg2any.segment.mask_head import read_learned
    from seg2any.system.weights import file_digest

    learned = read_learned(given.lora_ckpt_path)
    if given.base == "sd3":
        model = {"model": given.pretrained_model_name_or_path}
        file = given.masks_lora and file_digest(given.masks_lora)
        return {"segment": {name: getattr(given, name) for name in OWN} | {"base": "sd3", "masks_lora": file}, **model}
    flags = {**{name: getattr(given, name) for name in OWN}, "learned": learned and asdict(learned)}
    return {"segment": flags, **flow_identity(given)}


def open_segmenter(given: Namespace, machine: Machine) -> AttentionSegmenter:
    """Load the model. Raises UserError for blocks that it lacks, or that nobody knows."""
    from seg2any.segment.attention import AttentionSegmenter, Choices  # late: they take seconds to import
    from seg2any.segment.mask_head import read_head, read_learned

    choices = Choices(given.background, given.threshold, given.merging)
    if given.base == "sd3":
        from seg2any.bases.sd3.open import open_sd3

        base, scheduler = open_sd3(given.pretrained_model_name_or_path, given.masks_lora, machine.dtype, machine.device)
        return AttentionSegmenter(base, scheduler, probe_settings(given, base), choices)
    learned = read_learned(given.lora_ckpt_path)
    head = learned and read_head(given.lora_ckpt_path, learned)
    pipe = open_session(given, machine).pipeline
    return AttentionSegmenter(pipe.base, pipe.scheduler, probe_settings(given, pipe.base, learned), choices, head)


def probe_settings(given: Namespace, base: Base, learned: Learned | None = None) -> ProbeSettings:
    """Complete the flags, see `seg2any.segment.probe.completed`. Raises UserError."""
    from seg2any.segment.probe import ProbeSettings, completed

    asked = ProbeSettings(
        blocks=tuple(given.blocks or ()),
        side=given.side or 0,
        noise_level=given.noise_level,
        seeds=tuple(given.seeds),
        guidance_scale=given.guidance_scale,
        text_tokens=given.text_tokens,
    )
    return completed(asked, base, learned)
