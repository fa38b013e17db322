"""Turn the scores of a phrase in all heads of attention into a mask, by a small CNN that was trained for it.

A folder of adapters that learned masks holds `masks.json`, which says where they learned them, and `masks.safetensors`
with the CNN if one was trained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seg2any.attention.settings import MOST_TEXT_TOKENS
from seg2any.system.errors import UserError, brief
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json
from seg2any.system.limits import bounded_bytes, limits

CARD, WEIGHTS = "masks.json", "masks.safetensors"
CHANNELS = 64
MOST_BLOCKS = 1000  # of a transformer


class MaskHead(nn.Module):
    """Three convolutions over the maps of all heads and blocks; their result is added to the mean of the maps."""

    def __init__(self, n_maps: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_maps, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, 1, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the logits [n, h, w] of n phrases whose scores are [n, maps, h, w]."""
        return maps.mean(1) + self.layers(maps)[:, 0]


@dataclass(frozen=True)
class Learned:
    """Where adapters learned masks.

    blocks       numbers of the blocks
    background   the name that they learned for what is no region; None: none
    n_maps       maps that the CNN reads, blocks x heads; 0: there is none
    noise_level  half of the training was above it; None: unknown
    text_tokens  most tokens of their texts; None: unknown
    """

    blocks: tuple[int, ...]
    background: str | None = None
    n_maps: int = 0
    noise_level: float | None = None
    text_tokens: int | None = None


def save_learned(folder: Path, learned: Learned, head: MaskHead | None) -> None:
    """Write the card and, if there is one, the CNN."""
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(json.dumps(asdict(learned), indent=2) + "\n", encoding="utf-8")
    if head is not None:
        with atomic_write(folder / WEIGHTS) as temporary:
            save_file({name: x.detach().cpu().contiguous() for name, x in head.state_dict().items()}, temporary)


def read_learned(folder: Path | None) -> Learned | None:
    """Read the card of a folder of adapters; None without one. Raises UserError for a damaged one."""
    if folder is None or not (Path(folder) / CARD).is_file():
        return None
    path = Path(folder) / CARD
    try:
        found = parse_json(bounded_bytes(path, limits().json_bytes))
        blocks, background, n_maps = tuple(found["blocks"]), found["background"], found["n_maps"]
        level, tokens = found.get("noise_level"), found.get("text_tokens")  # not in older cards
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({brief(error)}); copy the file again") from None
    numbers = all(type(one) is int and 0 <= one < MOST_BLOCKS for one in blocks) and len(blocks) <= MOST_BLOCKS
    fits = level is None or (type(level) in (int, float) and 0 <= level <= 1)
    fits &= tokens is None or (type(tokens) is int and 2 <= tokens <= MOST_TEXT_TOKENS)
    if not (numbers and fits and type(n_maps) is int and 0 <= n_maps <= 4096):
        raise UserError(f"{path}: holds other values than train writes; copy the file again")
    if not (background is None or isinstance(background, str)):
        raise UserError(f"{path}: its background is no text; copy the file again")
    return Learned(blocks, background, n_maps, level, tokens)


def read_head(folder: Path, learned: Learned) -> MaskHead | None:
    """Read the CNN of a folder of adapters; None if none was trained. Raises UserError for a damaged one."""
    if not learned.n_maps:
        return None
    path = Path(folder) / WEIGHTS
    head = MaskHead(learned.n_maps)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); copy the file again") from None
    wanted = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != wanted:
        raise UserError(f"{path}: holds other tensors than {CARD} beside it says; copy both files again")
    head.load_state_dict(found)
    return head.eval().requires_grad_(False)


def check_head(head: MaskHead | None, n_blocks: int, n_heads: int) -> None:
    """Raise UserError for a CNN that reads another number of maps than the blocks have."""
    if head is not None and head.layers[0].in_channels != n_blocks * n_heads:
        raise UserError(
            f"{WEIGHTS}: reads {head.layers[0].in_channels} maps, but {n_blocks} blocks of {n_heads} heads give "
            f"{n_blocks * n_heads}; give the blocks that it was trained with"
        )


@torch.no_grad()
def masks_of(head: MaskHead, scores: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Return how sure the CNN is of each phrase [n, h, w], 0 to 1, from the scores [n, heads, I] of all blocks."""
    maps = torch.cat(scores, 1).unflatten(2, grid)
    return head.to(maps.device)(maps).sigmoid()
