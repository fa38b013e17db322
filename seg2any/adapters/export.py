"""Write an adapter under the names of kohya or ComfyUI, for programs that follow the original code of FLUX.

    python -m seg2any.adapters.export my_run/checkpoint-20000 my_style.safetensors --names kohya

Query, key and value, and the MLP beside them in single blocks, become one pair: their ranks add up, and each keeps
columns of its own, so that reading the file gives the same adapter again. Only regional attention and contour tokens
make images follow masks: elsewhere `default` acts as any other LoRA.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seg2any.adapters.alpha import PREFIX, peft_config, scales_of
from seg2any.adapters.card import read_card
from seg2any.adapters.flux_names import SWAPPED, original_layers, swap_halves
from seg2any.adapters.lora_file import WEIGHTS_FILE
from seg2any.adapters.pairs import Pair
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, sort_metadata, user_path

Names = Literal["kohya", "comfyui"]


def export_adapter(folder: Path, file: Path, names: Names = "kohya", adapter: str = DEFAULT) -> None:
    """Write an adapter of a folder that `save_adapters` wrote to a file, under the names of another program.

    Raises UserError for a missing file or one of another origin.
    """
    source = folder / adapter / WEIGHTS_FILE
    try:
        with safe_open(source, "pt") as opened:
            weights = {key.removeprefix(PREFIX): opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{source}: cannot be read ({error}); give a folder with {adapter}/{WEIGHTS_FILE}") from None
    try:
        pairs = {
            layer: Pair(down, weights[f"{layer}.lora_B.weight"], None, len(down))
            for key, down in weights.items()
            if (layer := key.removesuffix(".lora_A.weight")) != key
        }
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]} is missing; export a file that this program wrote") from None
    scales = scales_of(pairs, metadata, peft_config(metadata, source), read_card(folder, metadata))
    with atomic_write(file) as path:
        save_file(renamed(pairs, scales, names), path, {"format": "pt", "ss_network_module": "networks.lora_flux"})
        sort_metadata(path)


def renamed(pairs: Mapping[str, Pair], scales: Mapping[str, float], names: Names) -> dict[str, Tensor]:
    """Return the weights of an adapter and their alphas under other names.

    Raises UserError for layers that the original code does not have, or only together with others.
    """
    weights, written = {}, set()
    for original, layers in original_layers(pairs).items():
        if lacking := [layer for layer in layers if layer not in pairs]:
            raise UserError(f"{original}: the adapter lacks {lacking[0]} of it; export an adapter with all layers")
        pair = _joined([pairs[layer] for layer in layers], [scales[layer] for layer in layers])
        up = swap_halves(pair.up) if original == SWAPPED else pair.up
        name = f"lora_unet_{original.replace('.', '_')}" if names == "kohya" else f"diffusion_model.{original}"
        weights |= {
            f"{name}.lora_down.weight": pair.down.contiguous(),
            f"{name}.lora_up.weight": up.contiguous(),
            f"{name}.alpha": torch.tensor(pair.alpha),
        }
        written |= {*layers}
    if left := pairs.keys() - written:
        raise UserError(f"{min(left)}: is no layer of FLUX.1; export an adapter of FLUX.1")
    return weights


def _joined(pairs: Sequence[Pair], scales: Sequence[float]) -> Pair:
    """Join the pairs of layers whose outputs follow each other; the scale of the first becomes that of all."""
    down = torch.cat([pair.down for pair in pairs])
    ups = [
        pair.up if scale == scales[0] else (pair.up.float() * (scale / scales[0])).to(pair.up)
        for pair, scale in zip(pairs, scales, strict=True)
    ]
    return Pair(down, torch.block_diag(*ups), scales[0] * len(down), len(down))


def main() -> int:
    """Return the exit status: 0 done, 2 wrong input."""
    parser = Parser(
        prog="python -m seg2any.adapters.export", description="Write an adapter under the names of other programs."
    )
    parser.add_argument("folder", type=user_path, help="folder of adapters, with default/")
    parser.add_argument("file", type=user_path, help="safetensors file to write")
    parser.add_argument("--names", choices=("kohya", "comfyui"), default="kohya", help="names to write")
    parser.add_argument("--adapter", choices=(DEFAULT, COND), default=DEFAULT, help="adapter to write")
    given = parser.parse_args()
    return exit_status(
        "seg2any.adapters.export", lambda: export_adapter(given.folder, given.file, given.names, given.adapter)
    )


if __name__ == "__main__":
    sys.exit(main())
