"""Captions to embeddings, the way FLUX was trained to read them.

T5 sees every caption alone, padded to a fixed length and without an attention mask, so the padding takes part and an
embedding is exact for that length only (spec section 3). The padding rows are dropped afterwards.
"""

from __future__ import annotations

import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

TOKENS_PER_PASS = 8192  # bounds the memory of one pass: 16 captions at T5's 512 tokens


class TruncationWarning(UserWarning):
    """A caption is longer than what is read of it."""


class TextEncoders(Protocol):
    """A FLUX pipeline, or anything with the same four attributes."""

    tokenizer: object
    text_encoder: torch.nn.Module
    tokenizer_2: object
    text_encoder_2: torch.nn.Module


class TextKey(NamedTuple):
    """Everything an embedding depends on besides the encoders, hence what a cache stores it under.

    kind  "t5"         [T, D], T <= length: the caption's own tokens, its `</s>` included
          "t5_padded"  [length, D]: with the padding rows, as stock FLUX takes it
          "clip"       [P]: the pooled vector of CLIP's first 77 tokens; length is 0
    """

    caption: str
    length: int
    kind: Literal["t5", "t5_padded", "clip"]


@dataclass(frozen=True)
class Prompt:
    """What is said about one sample: the embeddings it needs."""

    caption: TextKey | None
    regions: tuple[TextKey, ...]
    pooled: TextKey

    def __iter__(self) -> Iterator[TextKey]:
        return iter((*([self.caption] if self.caption else []), *self.regions, self.pooled))


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The embeddings of a `Prompt`: caption [T0, D] (T0 = 0 without one), regions N x [Ti, D], pooled [P]."""

    caption: Tensor
    regions: tuple[Tensor, ...]
    pooled: Tensor

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the global caption, then of each region."""
        return (len(self.caption), *map(len, self.regions))

    @property
    def embeds(self) -> Tensor:
        """[T, D]: the global caption's rows, then the regions' in order."""
        return torch.cat([self.caption, *self.regions])


@torch.no_grad()
def encode_texts(
    prompts: Sequence[Prompt], encoders: TextEncoders, known: MutableMapping[TextKey, Tensor] | None = None
) -> list[EncodedText]:
    """Encode each distinct caption once; the tensors are on the CPU.

    known  embeddings of earlier calls: found ones are not encoded again, new ones are added.
    Warns with TruncationWarning, once per caption, if tokens are cut.
    """
    known = {} if known is None else known
    keys = dict.fromkeys(key for prompt in prompts for key in prompt)
    at_hand = {key: known[key] for key in keys if key in known}  # apart: a bounded `known` may drop some of them
    new = dict(encode_keys([key for key in keys if key not in at_hand], encoders))
    known.update(new)
    return [text_of(prompt, at_hand | new) for prompt in prompts]


@torch.no_grad()
def encode_keys(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    """The embedding of each key, on the CPU, not in their order. Warns as `encode_texts` does."""
    yield from _encode_pooled([key for key in keys if key.kind == "clip"], encoders)
    yield from _encode_t5([key for key in keys if key.kind != "clip"], encoders)


def text_of(prompt: Prompt, known: Mapping[TextKey, Tensor]) -> EncodedText:
    """What `known` holds of a prompt; without a global caption its rows are none, of the width of a region's."""
    return EncodedText(
        caption=known[prompt.caption] if prompt.caption else known[prompt.regions[0]][:0],
        regions=tuple(known[key] for key in prompt.regions),
        pooled=known[prompt.pooled],
    )


def _encode_pooled(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    if not keys:  # then the encoder may be gone
        return
    # What CLIP cuts after 77 tokens is not lost, T5 reads it, so it is not reported.
    limit = encoders.text_encoder.config.max_position_embeddings
    for batch in _passes(keys, limit):
        tokens = _tokenize(encoders.tokenizer, [key.caption for key in batch], limit)
        pooled = encoders.text_encoder(_to(encoders.text_encoder, tokens.input_ids)).pooler_output.cpu()
        yield from zip(batch, (row.clone() for row in pooled), strict=True)


def _encode_t5(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    for batch in _equal_lengths(keys):
        captions, length = [key.caption for key in batch], batch[0].length
        _report_truncation(captions, length, encoders.tokenizer_2)
        tokens = _tokenize(encoders.tokenizer_2, captions, length)
        embeds = encoders.text_encoder_2(_to(encoders.text_encoder_2, tokens.input_ids))[0].cpu()
        for key, rows, n_own in zip(batch, embeds, tokens.attention_mask.sum(dim=1), strict=True):
            # A clone: a row of the batch would keep the whole batch in memory for as long as it is cached.
            yield key, (rows if key.kind == "t5_padded" else rows[:n_own]).clone()


def _equal_lengths(keys: Iterable[TextKey]) -> Iterator[list[TextKey]]:
    """Batches of keys that are padded to the same length, of at most TOKENS_PER_PASS tokens."""
    by_length = defaultdict(list)
    for key in keys:
        by_length[key.length].append(key)
    for length, same in by_length.items():
        yield from _passes(same, length)


def _passes(keys: Sequence[TextKey], length: int) -> Iterator[Sequence[TextKey]]:
    """Batches of keys of `length` tokens, of at most TOKENS_PER_PASS tokens."""
    step = max(TOKENS_PER_PASS // length, 1)
    yield from (keys[start : start + step] for start in range(0, len(keys), step))


def _report_truncation(captions: Sequence[str], length: int, tokenizer: object) -> None:
    for caption, ids in zip(captions, tokenizer(captions, verbose=False).input_ids, strict=True):
        cut = len(ids) - length
        if cut > 0:
            warnings.warn(
                f"caption {textwrap.shorten(caption, 80)!r} has {len(ids)} tokens, {cut} are cut; shorten it or raise "
                "max_sequence_length (global caption) or regional_max_sequence_length (regions)",
                TruncationWarning,
                stacklevel=2,
            )


def _tokenize(tokenizer: object, captions: Sequence[str], length: int):
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _to(module: torch.nn.Module, ids: Tensor) -> Tensor:
    return ids.to(get_module_execution_device(module))
