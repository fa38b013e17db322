"""Give adapters what further training changed on earlier ones, without training.

    python -m examples.shapes.make.transfer examples/shapes/lora --before old/lora --after old/isolated --output new

Weights are lora + (after - before); the settings of the condition are those of `after`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from seg2any.adapters.files import save_adapters
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 written, 2 wrong input or unwritable folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=user_path, help="adapter folder to change")
    parser.add_argument("--model", default="examples/shapes/model", help="pipeline folder (default: %(default)s)")
    parser.add_argument("--before", type=user_path, required=True, help="adapter folder of an earlier training")
    parser.add_argument("--after", type=user_path, required=True, help="adapter folder that was trained from that one")
    parser.add_argument("--output", type=user_path, required=True, help="adapter folder to write")
    args = parser.parse_args(words)

    def write() -> None:
        transfer(args.model, args.lora, args.before, args.after, args.output)
        print(f"saved {args.output}")

    return exit_status("examples.shapes.make.transfer", write, "start again")


@torch.no_grad()
def transfer(model: str, lora: Path, before: Path, after: Path, output: Path) -> None:
    """Write adapters and their card in fp16.

    Raises UserError for a folder without adapters, and if the weights differ in names or shapes.
    """
    target, start, end = (_load(model, folder) for folder in (lora, before, after))
    weights, *others = (dict(pipeline.transformer.named_parameters()) for pipeline in (target, start, end))
    shapes = {name: value.shape for name, value in weights.items()}
    for folder, other in zip((before, after), others, strict=True):
        if {name: value.shape for name, value in other.items()} != shapes:
            raise UserError(f"{folder}: has other weights than {lora}; give adapters of the same rank and places")
    for name, value in weights.items():
        if "lora_" in name:
            value += others[1][name] - others[0][name]
    card = replace(target.card, condition=end.card.condition)
    save_adapters(target.transformer, output, card, dtype=torch.float16)


def _load(model: str, lora: Path) -> Seg2AnyPipeline:
    pipeline = Seg2AnyPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.load_adapters(str(lora))
    return pipeline


if __name__ == "__main__":
    run_command(main)
