"""Build what `segment` asks and what it asks with: the prompt, the probe's settings, the loaded segmenter."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.bases.base import Base
from seg2any.generate.choices import LIBRARIES, Machine
from seg2any.generate.model import known_adapter, known_model, read_adapter_card
from seg2any.generate.session import Loading, Session
from seg2any.segment.attention import AttentionSegmenter, Choices
from seg2any.segment.probe import ProbeSettings
from seg2any.segment.segmenter import Prompt
from seg2any.system.device import choose_device, device_name
from seg2any.system.errors import UserError
from seg2any.system.precision import choose_dtype
from seg2any.system.processes import Process
from seg2any.system.provenance import versions


@dataclass(frozen=True)
class Asked:
    """A prompt, and the flags that change what is found; `recipe` identifies both and the model."""

    prompt: Prompt
    recipe: dict


def asked_of(given: Namespace, machine: Machine) -> Asked:
    """Read the prompt and identify everything that the result depends on. Raises UserError."""
    prompt = prompt_of(given)
    names = ("method", "background", "threshold", "merging", "blocks", "side", "noise_level", "seeds")
    flags = {name: getattr(given, name) for name in (*names, "guidance_scale", "text_tokens", "format")}
    recipe = {
        "segment": {**flags, "phrases": prompt.phrases, "categories": prompt.categories},
        "model": known_model(given.pretrained_model_name_or_path, given.base_parts),
        "adapter": given.lora_ckpt_path and known_adapter(given.lora_ckpt_path),
        "weight_dtype": machine.precision,
        "device": machine.device.type,
        "versions": versions(LIBRARIES),
    }
    return Asked(prompt, recipe)


def prompt_of(given: Namespace) -> Prompt:
    """Return the prompt of the flags. Raises UserError for a text that is blank, too long or given twice."""
    if given.phrases:
        return Prompt(phrases=distinct("--phrases", given.phrases))
    if given.categories:
        return Prompt(categories=distinct("--categories", names_of(given.categories)))
    return Prompt()


def names_of(given: Sequence[str]) -> list[str]:
    """Return the names of the flag, or the lines of the one file that it names. Raises UserError."""
    if len(given) > 1 or not Path(given[0]).is_file():
        return list(given)
    try:
        lines = Path(given[0]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--categories {given[0]}: cannot be read as UTF-8; write one name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"--categories {given[0]}: holds no name; write one a line")
    return names


def distinct(flag: str, texts: Sequence[str]) -> list[str]:
    """Return the texts without outer spaces. Raises UserError for one that is given twice."""
    texts = [text.strip() for text in texts]
    if twice := next((text for number, text in enumerate(texts) if text in texts[:number]), None):
        raise UserError(f"{flag} {twice!r}: is given twice; leave one of them out")
    return texts


def machine_of(given: Namespace, process: Process) -> Machine:
    """Choose device and precision. Raises UserError."""
    device = choose_device(device_name(process, given.device))
    return Machine(device, choose_dtype(given.weight_dtype, device))


def open_session(given: Namespace, machine: Machine) -> Session:
    """Load the model and, if one is named, an adapter. Raises UserError."""
    read_adapter_card(given.lora_ckpt_path)
    loading = Loading(given.lora_ckpt_path, memory=given.memory, base_parts=given.base_parts)
    return Session.open(given.pretrained_model_name_or_path, machine.dtype, machine.device, loading)


def open_segmenter(given: Namespace, session: Session) -> AttentionSegmenter:
    """Build the segmenter of the flags. Raises UserError for blocks that the model lacks, or that nobody knows."""
    choices = Choices(given.background, given.threshold, given.merging)
    pipe = session.pipeline
    return AttentionSegmenter(pipe.base, pipe.scheduler, probe_settings(given, pipe.base), choices)


def probe_settings(given: Namespace, base: Base) -> ProbeSettings:
    """Complete the flags by what is known about the model. Raises UserError if nothing is."""
    known = base.probing
    for name in ("blocks", "side"):
        if getattr(given, name) is None and known is None:
            raise UserError(f"--{name}: nobody has measured this model; give it, --sweep LAYOUTS measures all blocks")
    return ProbeSettings(
        blocks=tuple(given.blocks or known.blocks),
        side=given.side or known.side,
        noise_level=given.noise_level,
        seeds=tuple(given.seeds),
        guidance_scale=given.guidance_scale,
        text_tokens=given.text_tokens,
    )
