"""Read how strongly image tokens ask for the tokens of a phrase, before any softmax and any mask of regions.

    x_s, text --> Base.velocity(.., tap=PhraseScores(blocks, columns)) --> scores [n, heads, I] of each sample

The score of a phrase is q k^T / sqrt(d), averaged over the phrase's keys. Gradients reach query and key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from seg2any.attention.pattern import AttentionPattern
from seg2any.system.errors import UserError

Columns = Sequence[Sequence[int]]  # the text tokens of each phrase


class PhraseScores:
    """The scores of phrases in chosen blocks: a `Tap`, which changes nothing.

    columns  of each sample
    """

    def __init__(self, blocks: Iterable[int], columns: Sequence[Columns]):
        self.blocks, self.columns = tuple(dict.fromkeys(blocks)), columns
        self._of_block: dict[int, list[Tensor]] = {}

    def __call__(self, block: int, query: Tensor, key: Tensor, pattern: AttentionPattern | None) -> None:
        """Keep the scores of a chosen block.

        Gradient checkpointing runs a block twice, and must compute the same both times; the first result is kept.
        """
        if block not in self.blocks:
            return
        tokens = pattern.tokens
        image = query[:, tokens.n_text : tokens.n_text + tokens.n_image]
        scores = [phrase_scores(q, k, own) for q, k, own in zip(image, key, self.columns, strict=True)]
        self._of_block.setdefault(block, scores)

    def of_blocks(self) -> list[list[Tensor]]:
        """Return the scores [n, heads, I] of each sample (inner list) in each block, in the order of `blocks`.

        Raises UserError if the network did not run one of them.
        """
        if missing := [block for block in self.blocks if block not in self._of_block]:
            raise UserError(f"attention of block {missing[0]}: the network did not run it; choose another block")
        return [self._of_block[block] for block in self.blocks]


def phrase_scores(query: Tensor, key: Tensor, columns: Columns) -> Tensor:
    """Compute the scores of n phrases, float32 [n, heads, I], for queries [I, heads, d] and keys [L, heads, d]."""
    if not columns:
        return query.new_zeros(0, query.shape[1], query.shape[0], dtype=torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        own = torch.stack([key[list(places)].float().mean(0) for places in columns])
        return torch.einsum("ihd,nhd->nhi", query.float(), own) * query.shape[-1] ** -0.5
