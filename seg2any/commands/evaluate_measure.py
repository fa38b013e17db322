"""`evaluate measure`: measure a folder of images, with the methods of `segment` as judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seg2any.commands.segment_methods import METHODS, MethodParser
from seg2any.evaluation.runners.__main__ import main as measure
from seg2any.system.errors import UserError, shown
from seg2any.system.words import probably_meant

if TYPE_CHECKING:
    import torch

    from seg2any.evaluation.judges.segmenters import NamedSegmenter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of `seg2any.evaluation.runners`; return its exit status."""
    return measure(arguments, open_segmenter)


def open_segmenter(words: Sequence[str], way: str, device: torch.device) -> NamedSegmenter:
    """Open a method: its name, then its flags as FLAG=VALUE, several for a flag that takes several values.

    way  how it will be asked, one of `seg2any.commands.segment_methods.WAYS`

    Raises UserError, also for a method that is not asked in this way.
    """
    from seg2any.evaluation.judges.segmenters import NamedSegmenter  # late: they take seconds to import
    from seg2any.generate.choices import Machine
    from seg2any.system.precision import choose_dtype

    name, *flags = words or ("",)
    if name not in METHODS:
        near = probably_meant(name, METHODS)
        hint = f"did you mean {near}?" if near else f"choose one of {', '.join(METHODS)}"
        raise UserError(f"--segmenter: {shown(name)} is no method of segment; {hint}")
    if way not in METHODS[name].takes:
        raise UserError(f"--segmenter: {name} {METHODS[name].lacks}, and is asked for {way} here; give another method")
    parser = MethodParser(prog=f"--segmenter {name}", add_help=False)
    parser.method = name
    module = METHODS[name].load()
    module.add_flags(parser)
    given = parser.parse_args(_as_flags(flags))
    module.check(given, way)
    machine = Machine(device, choose_dtype(None, device))
    known = {"method": name, "precision": machine.precision, **module.identity(given, machine)}
    return NamedSegmenter(json.dumps(known, sort_keys=True, default=str), module.open_segmenter(given, machine))


def _as_flags(given: Sequence[str]) -> list[str]:
    """Turn FLAG=VALUE into words of a command line; values of one flag stand together."""
    values: dict[str, list[str]] = {}
    for word in given:
        flag, found, value = word.partition("=")
        if not found:
            raise UserError(f"--segmenter: {shown(word)} is no FLAG=VALUE; write for instance threshold=0.4")
        values.setdefault(f"--{flag.lstrip('-')}", []).append(value)
    return [word for flag, words in values.items() for word in (flag, *words)]
