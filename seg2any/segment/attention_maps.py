"""Read image-to-text attention out of a flow model, and pool it to maps of classes (Seg4Diff, arXiv 2509.18096).

    x_s, text --> Base.velocity(.., tap=AttentionMaps(blocks)) --> weights [B, I, T] --> class maps [C, h, w]

An image token's weight for a text token is softmax(q k^T / sqrt(d)) over all keys, averaged over heads.
Shape suffixes: B batch, I image tokens, T text tokens, L all tokens, h w token grid, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seg2any.attention.pattern import AttentionPattern
from seg2any.system.errors import UserError

SLICE = 2**22  # weights computed at a time: 16 MiB in float32
TINY = 1e-6  # added to a maximum before it divides, as published


class AttentionMaps:
    """The image-to-text weights of chosen blocks: a `Tap`, which reads query and key and changes nothing.

    A block that gradient checkpointing computes twice is kept once.
    """

    def __init__(self, blocks: Iterable[int]):
        self.blocks = tuple(dict.fromkeys(blocks))
        self._of_block: dict[int, Tensor] = {}

    def __call__(self, block: int, query: Tensor, key: Tensor, pattern: AttentionPattern | None) -> None:
        """Keep the weights of a chosen block. Raises UserError where a mask keeps regions apart."""
        if block not in self.blocks:
            return
        if pattern is None or not pattern.is_full:
            raise UserError(
                f"attention of block {block}: a mask keeps regions apart, so the answer would be the mask itself; "
                "probe with attention_mask_method none"
            )
        self._of_block[block] = image_to_text(query, key, pattern.tokens.n_text, pattern.tokens.n_image)

    def weights(self) -> Tensor:
        """Return the weights of all chosen blocks, float32 [blocks, B, I, T], in the order of `blocks`.

        Raises UserError if the network did not run one of them.
        """
        if missing := [block for block in self.blocks if block not in self._of_block]:
            raise UserError(f"attention of block {missing[0]}: the network did not run it; choose another block")
        return torch.stack([self._of_block[block] for block in self.blocks])


@torch.no_grad()
def image_to_text(query: Tensor, key: Tensor, n_text: int, n_image: int) -> Tensor:
    """Average softmax(q k^T / sqrt(d)) over heads, from image queries to text keys: float32 [B, I, T].

    query, key  [B, L, heads, d] of the tokens [text | image | ..], after RoPE

    Heads are added one by one and queries are taken in slices, so that memory stays near SLICE numbers.
    """
    total = query.new_zeros(len(query), n_image, n_text, dtype=torch.float32)
    rows = max(1, SLICE // key.shape[1])
    with torch.autocast(query.device.type, enabled=False):
        for sample in range(len(query)):
            for head in range(query.shape[2]):
                keys = key[sample, :, head].float().T * query.shape[-1] ** -0.5
                for start in range(0, n_image, rows):
                    stop = min(start + rows, n_image)
                    queries = query[sample, n_text + start : n_text + stop, head].float()
                    total[sample, start:stop] += (queries @ keys).softmax(-1)[:, :n_text]
    return total.div_(query.shape[2])


def image_to_text_scores(query: Tensor, key: Tensor, n_text: int, n_image: int) -> Tensor:
    """Compute q k^T / sqrt(d) before the softmax, from image queries to text keys: [B, heads, I, T].

    Gradients reach query and key.
    """
    image, text = query[:, n_text : n_text + n_image].float(), key[:, :n_text].float()
    return torch.einsum("bihd,bthd->bhit", image, text) * query.shape[-1] ** -0.5


def min_max(x: Tensor, dim: int, power: float = 1) -> Tensor:
    """Move and scale x to 0..1 along a dimension, and raise it to a power."""
    x = x - x.amin(dim, keepdim=True)
    return (x / (x.amax(dim, keepdim=True) + TINY)) ** power


def class_maps(
    weights: Tensor, columns: Sequence[Sequence[int]], grid: tuple[int, int], scaled: Iterable[str] = ()
) -> Tensor:
    """Average the weights [blocks, I, T] over blocks, and over each class's columns: [C, h, w].

    scaled  where to apply `min_max` over the positions: "tokens", "classes", both or nowhere
    """
    scaled, of_token = {*scaled}, weights.float().mean(0)
    if "tokens" in scaled:
        of_token = min_max(of_token, 0)
    of_class = torch.stack([of_token[:, list(own)].mean(1) for own in columns])
    if "classes" in scaled:
        of_class = min_max(of_class, 1)
    return of_class.unflatten(1, grid)


def enlarged(one: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge a map [h, w] to (H, W), bilinearly."""
    return F.interpolate(one[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def label_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the number of the greatest of C maps [C, h, w] at every pixel, int64 [H, W]; the first of equal ones."""
    best = enlarged(maps[0], size)
    label = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for number, one in enumerate(maps[1:], start=1):
        found = enlarged(one, size)
        label[found > best] = number
        best = torch.maximum(best, found)
    return label
