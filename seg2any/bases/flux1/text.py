"""Encode captions with T5 and CLIP as in FLUX.1's training.

T5 reads each caption alone, padded to a fixed length, without an attention mask. So the padding changes the embedding,
which is exact for that length only. The padding rows are dropped afterwards.

kinds of `TextKey`:  "t5"         [T, D], T <= length: the caption's own tokens, its `</s>` included
                     "t5_padded"  [length, D]: with the padding rows, the input of stock FLUX
                     "clip"       [P]: the pooled vector of CLIP's first 77 tokens; length is 0
"""

from __future__ import annotations

import textwrap
import warnings
import weakref
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import CaptionKeys, TextKey, TruncationWarning, UnknownWordsWarning, unknown_parts
from seg2any.system.errors import UserError

TOKENS_PER_PASS = 8192  # bounds the memory of one pass: 16 captions at T5's 512 tokens


class TextEncoders(Protocol):
    """The text part of a FLUX pipeline, or any object with these four attributes."""

    tokenizer: object
    text_encoder: nn.Module
    tokenizer_2: object
    text_encoder_2: nn.Module


def caption_keys_of(caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> CaptionKeys:
    """Name the embeddings of a sample's captions; its global caption may be None.

    Raises UserError for plain settings without a global caption.
    """
    if settings.is_plain:
        if caption is None:
            raise UserError("layout: `caption` is missing, and attention_mask_method none reads nothing else; add it")
        return CaptionKeys(TextKey(caption, settings.max_sequence_length, "t5_padded"), (), TextKey(caption, 0, "clip"))
    return CaptionKeys(
        caption=None if caption is None else TextKey(caption, settings.max_sequence_length, "t5"),
        regions=tuple(TextKey(text, settings.regional_max_sequence_length, "t5") for text in regions),
        pooled=TextKey(".".join(regions) if caption is None else caption, 0, "clip"),
    )


@torch.no_grad()
def encode_keys(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    """Yield the embedding of each key, on the CPU, in any order.

    Warns with TruncationWarning if T5 does not read all tokens of a caption, and with UnknownWordsWarning if it does
    not know some.
    """
    yield from _encode_pooled([key for key in keys if key.kind == "clip"], encoders)
    yield from _encode_t5([key for key in keys if key.kind != "clip"], encoders)


def encoder_state(key: TextKey, encoders: TextEncoders) -> Hashable:
    """Return the encoder of a key, its precision and its active LoRAs."""
    encoder = encoders.text_encoder if key.kind == "clip" else encoders.text_encoder_2
    has_loras = getattr(encoder, "_hf_peft_config_loaded", False)
    return weakref.ref(encoder), encoder.dtype, tuple(encoder.active_adapters()) if has_loras else ()


def _encode_pooled(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    if not keys:  # the encoder may have been released
        return
    # No warning for the cut after 77 tokens: T5 reads the rest.
    limit = encoders.text_encoder.config.max_position_embeddings
    for batch in _passes(keys, limit):
        tokens = _tokenize(encoders.tokenizer, [key.caption for key in batch], limit)
        pooled = encoders.text_encoder(_to(encoders.text_encoder, tokens.input_ids)).pooler_output.cpu()
        yield from zip(batch, (row.clone() for row in pooled), strict=True)


def _encode_t5(keys: Sequence[TextKey], encoders: TextEncoders) -> Iterator[tuple[TextKey, Tensor]]:
    for batch in _equal_lengths(keys):
        captions, length = [key.caption for key in batch], batch[0].length
        _report_unread(captions, length, encoders.tokenizer_2)
        tokens = _tokenize(encoders.tokenizer_2, captions, length)
        embeds = encoders.text_encoder_2(_to(encoders.text_encoder_2, tokens.input_ids))[0].cpu()
        for key, rows, n_own in zip(batch, embeds, tokens.attention_mask.sum(dim=1), strict=True):
            # A view would keep the whole batch in memory as long as it is cached.
            yield key, (rows if key.kind == "t5_padded" else rows[:n_own]).clone()


def _equal_lengths(keys: Iterable[TextKey]) -> Iterator[list[TextKey]]:
    """Yield batches of keys with equal `length` and at most TOKENS_PER_PASS tokens."""
    by_length = defaultdict(list)
    for key in keys:
        by_length[key.length].append(key)
    for length, same in by_length.items():
        yield from _passes(same, length)


def _passes(keys: Sequence[TextKey], length: int) -> Iterator[Sequence[TextKey]]:
    """Yield batches of at most TOKENS_PER_PASS tokens, `length` tokens per key."""
    step = max(TOKENS_PER_PASS // length, 1)
    yield from (keys[start : start + step] for start in range(0, len(keys), step))


def _report_unread(captions: Sequence[str], length: int, tokenizer: object) -> None:
    """Warn of each caption that is cut, and once of captions with unknown parts."""
    tokens = tokenizer(captions, verbose=False).input_ids
    if unknown := [caption for caption, ids in zip(captions, tokens, strict=True) if tokenizer.unk_token_id in ids]:
        parts = ", ".join(map(repr, unknown_parts(tokenizer, unknown[0])[:4]))
        warnings.warn(
            f"caption {textwrap.shorten(unknown[0], 80)!r}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}: "
            f"the text encoder does not know {parts}; write English",
            UnknownWordsWarning,
            stacklevel=2,
        )
    for caption, ids in zip(captions, tokens, strict=True):
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


def _to(module: nn.Module, ids: Tensor) -> Tensor:
    return ids.to(get_module_execution_device(module))


def text_bytes(sizes: Any, n_tokens: int, caption_length: int, width: int) -> int:
    """Estimate the bytes of activations that T5 has alive at once, beside its weights.

    With w and f numbers per token outside and inside the feed-forward layer, h heads and `width` e bytes per number, T
    tokens of captions padded to t take e (T (4 f + 4 w) + h t^2).

    sizes  T5's configuration
    """
    per_token = 4 * sizes.d_ff + 4 * sizes.d_model
    return width * (n_tokens * per_token + sizes.num_heads * caption_length**2)
