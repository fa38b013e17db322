"""Put the tokens of pictures and regions into the embeddings of a conversation.

    ids  <s> <|user|> PICTURE \n Please segment ..  -->  <s> <|user|> visual tokens, segmentation tokens, \n Please ..

Shape suffixes: B conversations, L tokens, P pictures, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PICTURE, REGION, IGNORED, NONE = -200, -300, -100, -1  # ids in the place of tokens; labels; numbers of no phrase


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of conversations, int64 [B, L]; `mask` is False where a shorter one is filled up.

    cond_ids  number of the phrase that each token is in, or None without any phrase
    seg_ids   number of each <SEG>
    """

    ids: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None
    cond_ids: Tensor | None = None
    seg_ids: Tensor | None = None

    def to(self, device: torch.device) -> Tokens:
        """Return these tokens on a device."""
        return Tokens(*(None if values is None else values.to(device) for values in vars(self).values()))


@dataclass(frozen=True)
class Spliced:
    """Embeddings [B, L, D] of conversations with their pictures, filled up at the right, and what `Tokens` has.

    positions  [B, L] from 0
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    ids: Tensor
    labels: Tensor | None
    cond_ids: Tensor | None
    seg_ids: Tensor | None


def splice(
    tokens: Tokens,
    embed: Callable[[Tensor], Tensor],
    pictures: Sequence[Tensor],
    regions: Sequence[Tensor | None] | None = None,
) -> Spliced:
    """Replace each picture's marker by its tokens, and each region's by its vector.

    pictures  [n, D] each: one for each marker in the order of the batch, or one for each conversation, with or without
              a marker
    regions   [N, D] or None for each conversation; without them their markers vanish

    A region's phrase is numbered by its rank among the regions, as published: do not mix it with phrases of text.
    Raises ValueError if pictures and markers do not fit.
    """
    rows, pairs = [], _pictures_of_rows(tokens, pictures)
    for number, own in enumerate(pairs):
        keep = slice(None) if tokens.mask is None else tokens.mask[number].bool()
        one = Tokens(
            *(_row(x, number, keep) for x in (tokens.ids, None, tokens.labels, tokens.cond_ids, tokens.seg_ids))
        )
        rows.append(_splice_row(one, embed, own, None if regions is None else regions[number]))
    device = tokens.ids.device
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)
    places = torch.arange(int(lengths.max()), device=device).expand(len(rows), -1)
    mask = places < lengths[:, None]

    def joined(name: str, filling: int) -> Tensor | None:
        values = [getattr(row, name) for row in rows]
        return None if values[0] is None else pad_sequence(values, batch_first=True, padding_value=filling)

    return Spliced(
        joined("embeddings", 0),
        mask,
        places * mask,
        joined("ids", IGNORED),
        joined("labels", IGNORED),
        joined("cond_ids", NONE),
        joined("seg_ids", NONE),
    )


@dataclass(frozen=True)
class _Row:
    embeddings: Tensor
    ids: Tensor
    labels: Tensor | None
    cond_ids: Tensor | None
    seg_ids: Tensor | None


def _row(values: Tensor | None, number: int, keep: Tensor | slice) -> Tensor | None:
    return None if values is None else values[number][keep]


def _pictures_of_rows(tokens: Tokens, pictures: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the pictures of each conversation."""
    counts = [int((row == PICTURE).sum()) for row in tokens.ids]
    if sum(counts) == len(pictures):
        ends = torch.tensor(counts).cumsum(0).tolist()
        return [list(pictures[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    if len(counts) == len(pictures) and max(counts) <= 1:
        return [[picture] * count for picture, count in zip(pictures, counts, strict=True)]
    raise ValueError(f"{len(pictures)} pictures for {sum(counts)} markers in {len(counts)} conversations")


def _splice_row(
    row: Tokens, embed: Callable[[Tensor], Tensor], pictures: Sequence[Tensor], regions: Tensor | None
) -> _Row:
    """Splice one conversation, int64 [L]."""
    device, unseen = row.ids.device, iter(pictures)
    # Where the new row takes each vector from: one table holds text, pictures and regions.
    vectors = [embed(row.ids.clamp(min=0))]
    source: list[int] = []
    ids: list[int] = []
    numbers: list[int] = []  # of the region, else NONE
    size, regions_seen = len(row.ids), 0
    for place, one in enumerate(row.ids.tolist()):
        new, number = [place], NONE
        if one == PICTURE:
            vectors.append(next(unseen))
            new = list(range(size, size + len(vectors[-1])))
        elif one == REGION:
            if regions is None or regions_seen >= len(regions):
                continue
            vectors.append(regions[regions_seen][None])
            new, number = [size], regions_seen
            regions_seen += 1
        size = max(size, new[-1] + 1)
        source += new
        ids += [one] * len(new)
        numbers += [number] * len(new)
    table = torch.cat([one.to(vectors[0].dtype) for one in vectors])
    taken, region = torch.tensor(source, device=device), torch.tensor(numbers, device=device)
    is_text = taken < len(row.ids)

    def moved(given: Tensor | None, other: int | Tensor) -> Tensor | None:
        if given is None:
            return None
        return torch.where(is_text, given[taken.clamp(max=len(row.ids) - 1)], other)

    return _Row(
        table[taken],
        torch.tensor(ids, device=device),
        moved(row.labels, IGNORED),
        moved(row.cond_ids, region),
        moved(row.seg_ids, NONE),
    )
