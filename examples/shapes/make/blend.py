"""Write a base between two others, so that adapters of the first still act on what the second has learned.

python -m examples.shapes.make.blend examples/shapes/model runs/base_texture/model --share 0.6 --output runs/blend
"""

from __future__ import annotations

import argparse

import torch
from diffusers import FluxPipeline

from examples.shapes.make.train_base import open_base
from seg2any.system.console import exit_status, real
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command

TRAINED = ("transformer", "text_encoder", "text_encoder_2")


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 written, 2 wrong input or unwritable folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="pipeline folder")
    parser.add_argument("second", help="pipeline folder of the same sizes, trained further from the first")
    parser.add_argument("--share", type=real(0), default=0.6, help="of the second, 0 to 1 (default: %(default)s)")
    parser.add_argument("--output", type=user_path, default="runs/blend", help="folder to write (default: %(default)s)")
    args = parser.parse_args(words)
    if args.share > 1:
        parser.error(f"--share {args.share}: is more than 1; give a share of the second base")

    def write() -> None:
        blend(args.first, args.second, args.share).to(torch.float16).save_pretrained(args.output)
        print(f"saved {args.output}")

    return exit_status("examples.shapes.make.blend", write, "start again")


def blend(first: str, second: str, share: float) -> FluxPipeline:
    """Return the first pipeline, the weights of TRAINED moved towards the second's by a share in [0, 1], in fp32.

    Raises UserError for a folder without a pipeline, and if the weights differ in names or shapes.
    """
    pipeline, other = map(open_base, (first, second))
    for name in TRAINED:
        own, theirs = (dict(getattr(parts, name).named_parameters()) for parts in (pipeline, other))
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
            raise UserError(f"{second}: its {name} has other weights than that of {first}; give one trained from it")
        with torch.no_grad():
            for key, value in own.items():
                value.lerp_(theirs[key], share)
    return pipeline


if __name__ == "__main__":
    run_command(main)
