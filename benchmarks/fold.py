"""Time a denoising step with adapters, and what folding and keeping the condition save.

    python -m benchmarks.fold                                # the small model of this repository
    python -m benchmarks.fold --model FLUX.1-dev --lora ckpt/sacap_1m/checkpoint-20000 --layout my.json \\
        --device cuda --dtype bf16

plain     FLUX without adapters: the same image, its caption padded to the adapter's max_sequence_length
unfolded  the adapters as loaded
folded    with `default` folded into the weights
kept      folded; condition tokens attend only to each other and are computed once, before the first step, in the time
          of row `once`

The schemes run in turn. Before anything is timed, `folded` must predict what `unfolded` predicts, and `kept` what the
same condition gives when it is computed in the step. Only adapters trained with `cond_attention: isolated` should use
`kept`; its time is the same with others. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from benchmarks.clock import CLOCKS, in_turn
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base, Condition
from seg2any.diffusion.cond_cache import with_keys
from seg2any.diffusion.prepare import assemble, encode_layouts, image_size
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout
from seg2any.system.console import exit_status, whole
from seg2any.system.device import choose_device
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command
from seg2any.system.precision import PRECISIONS, dtype_of
from seg2any.system.provenance import circumstances

GUIDANCE = 3.5
MOST_DIFFERENCE = 0.02  # relative difference of outputs that rounding to bfloat16 explains


def load(options: argparse.Namespace, adapted: bool) -> Seg2AnyPipeline:
    """Load a pipeline, with the adapters if `adapted`. Raises UserError."""
    pipe = Seg2AnyPipeline.from_pretrained(options.model, dtype=dtype_of(options.dtype))
    if adapted:
        pipe.load_adapters(options.lora)
    return pipe.to(options.device)


def prepare(pipe: Seg2AnyPipeline, layout: Layout, settings: ConditionSettings) -> Condition:
    """Build the condition of one image at the layout's size, rounded down to whole tokens."""
    size = image_size([layout], None, None, pipe.base.geometry.pixels_per_token * settings.cond_scale_factor)
    encoded = encode_layouts([layout], size, pipe.base, settings)
    generators = [torch.Generator().manual_seed(0)]
    return assemble(encoded, settings, generators).to(pipe.device, pipe.transformer.dtype)


@torch.no_grad()
def step(base: Base, condition: Condition) -> torch.Tensor:
    """Predict the velocity [1, I, C] at noise level 0.5."""
    latents = condition.text.new_ones(1, condition.tokens.n_image, base.geometry.channels)
    return base.velocity(latents, latents.new_full([1], 0.5), condition, GUIDANCE)


def check_equal(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise UserError if two predictions [1, I, C] differ by more than rounding explains."""
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= MOST_DIFFERENCE:
        raise UserError(f"{name}: the output differs by {difference:.1%} from the expected one; report this as a bug")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Measure all schemes: median seconds, tokens of a step, bytes of kept keys and values."""
    layout = Layout.read(options.layout)
    plain, routed, folded = (load(options, adapted) for adapted in (False, True, True))
    folded.fold()
    settings = routed.settings
    isolated = settings.override({"cond_attention": "isolated"})
    condition, alone = prepare(routed, layout, settings), prepare(folded, layout, isolated)
    kept = with_keys(folded.base, alone, GUIDANCE)
    given = {
        "plain": (plain, prepare(plain, layout, settings.override({"attention_mask_method": "none"}))),
        "unfolded": (routed, condition),
        "folded": (folded, condition),
        "kept": (folded, kept),
    }
    check_equal("folded", step(folded.base, condition), step(routed.base, condition))
    check_equal("kept", step(folded.base, kept), step(folded.base, alone))
    works: dict[str, Callable[[], object]] = {
        name: lambda pipe=pipe, given=given: step(pipe.base, given) for name, (pipe, given) in given.items()
    }
    works["once"] = lambda: with_keys(folded.base, alone, GUIDANCE)
    seconds = in_turn(works, options.rounds, options.device, options.clock)
    tokens = condition.tokens
    return {
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "tokens": {"image": tokens.n_image, "text": tokens.n_text, "condition": tokens.n_cond},
        "plain_text_tokens": given["plain"][1].tokens.n_text,
        "kept_bytes": kept.cond_keys.n_bytes,
    }


def table(report: dict) -> str:
    """Format the milliseconds of each scheme, also as multiples of plain FLUX."""
    seconds, tokens = report["seconds"], report["tokens"]
    sizes = ", ".join(f"{number} {kind}" for kind, number in tokens.items())
    lines = [
        f"{sizes} tokens; plain: {report['plain_text_tokens']} text tokens; kept: {report['kept_bytes'] / 1e6:.1f} MB"
    ]
    for name, each in seconds.items():
        lines.append(f"{name:<10}{each * 1e3:8.1f} ms {each / seconds['plain']:6.2f} of plain")
    return "\n".join(lines)


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes/model", help="FLUX folder (default: the small model)")
    parser.add_argument("--lora", default="examples/shapes/lora", help="adapter folder (default: the small model's)")
    parser.add_argument("--layout", default="examples/shapes/masks/eight.json", help="layout of the image")
    parser.add_argument(
        "--rounds", type=whole(1), default=10, help="rounds after the first, uncounted one (default: 10)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    options = parse_options(words)
    return exit_status("benchmarks.fold", lambda: run(options), "start again")


def run(options: argparse.Namespace) -> None:
    """Measure; print the table and the JSON line. Raises UserError."""
    options.device = str(choose_device(options.device))
    report = measure(options)
    print(table(report))
    print(json.dumps({"options": vars(options), **report, **circumstances(options.device)}))


if __name__ == "__main__":
    run_command(main)
