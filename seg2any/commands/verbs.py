"""The verbs of `seg2any`, in one table; none is imported before it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from seg2any.system.errors import shown
from seg2any.system.interrupts import run_command
from seg2any.system.words import probably_meant

PROGRAM = "seg2any"


@dataclass(frozen=True)
class Verb:
    """A line of the table.

    module  has `main(arguments, program)`, which returns the exit status
    words   arguments that come before those of the command line
    """

    module: str
    text: str
    words: tuple[str, ...] = ()


# Later flags win, so a user may choose another folder or other layouts.
DEMO = (
    *("--pretrained_model_name_or_path", "examples/shapes/model", "--lora_ckpt_path", "examples/shapes/lora"),
    *("--seg_mask_path", "examples/shapes/masks", "--num_inference_steps", "20", "--save_panels"),
)

VERBS: Mapping[str, Verb] = {
    "demo": Verb("seg2any.commands.generate", "make images with the embedded model: offline, on any machine", DEMO),
    "generate": Verb("seg2any.commands.generate", "make images from layouts: masks with captions"),
    "check": Verb("seg2any.commands.generate", "report what each region will get; make no image", ("--check",)),
    "segment": Verb("seg2any.commands.segment", "find regions in images: masks with captions, as layouts"),
    "annotate": Verb("seg2any.commands.annotate", "make a data set of photos, by the rules of SACap-1M"),
    "cycle": Verb("seg2any.commands.cycle", "close the loop: masks to image to masks, and image to masks to image"),
    "layouts": Verb("seg2any.commands.layouts", "convert layouts from and to the formats of other programs"),
    "convert-xsam": Verb("seg2any.commands.convert_xsam", "turn the published weights of X-SAM into a model folder"),
    "replay": Verb("seg2any.commands.replay", "make an image again from the recipe inside it"),
    "prepare": Verb("seg2any.commands.prepare", "count the tokens of training samples, for batches of equal length"),
    "train": Verb("seg2any.commands.train", "train adapters on folders, SACap-1M, ADE20K or COCO-Stuff"),
    "evaluate": Verb("seg2any.commands.evaluate", "make the images of a benchmark, measure and compare them"),
    "doctor": Verb("seg2any.commands.doctor", "say what works on this machine, and how to mend what does not"),
}


def main(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status: 0 done, 2 wrong input, else as the verb says."""
    if [*arguments] == ["--version"]:
        from seg2any.system.provenance import package_version  # late: it reads the installed package

        print(PROGRAM, package_version())
        return 0

    def run(verb: Verb, rest: list[str], program: str) -> int:
        return importlib.import_module(verb.module).main([*verb.words, *rest], program)

    return dispatch(arguments, VERBS, PROGRAM, EXAMPLES, run)


def dispatch(
    arguments: Sequence[str],
    verbs: Mapping[str, Verb],
    program: str,
    examples: str,
    run: Callable[[Verb, list[str], str], int],
) -> int:
    """Run the verb that the first word names, with the other words and the verb's full name; or print the table."""
    name, *rest = arguments or ("--help",)
    if name in ("-h", "--help", "help"):
        print(usage(verbs, program, examples))
        return 0
    if name not in verbs:
        near = probably_meant(name.lstrip("-"), verbs)
        hint = f"did you mean `{program} {near}`?" if near else f"choose one of {', '.join(verbs)}"
        print(f"{program}: {shown(name)} is no verb; {hint}", file=sys.stderr)
        return 2
    return run(verbs[name], rest, f"{program} {name}")


def usage(verbs: Mapping[str, Verb], program: str, examples: str) -> str:
    """Return the page of --help: a line for each verb, and examples."""
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {verb.text}" for name, verb in verbs.items()]
    return "\n".join([f"usage: {program} VERB ...", "", *lines, "", examples.strip()])


EXAMPLES = """
examples:
    seg2any demo
    seg2any check --seg_mask_path my_layouts
    seg2any generate --seg_mask_path my_layouts --lora_ckpt_path ckpt/sacap_1m/checkpoint-20000
    seg2any train config/seg2any_shapes.yaml --dry_run

`seg2any VERB --help` explains it, with examples. `seg2any --version` is for reports. `python -m seg2any` is the same.
"""


def start() -> NoReturn:
    """Run this process's command line."""
    run_command(lambda: main(sys.argv[1:]))
