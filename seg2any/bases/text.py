"""Name the text embeddings that samples need, compute each once, and cache them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MAX_BYTES = 256 * 2**20


class TruncationWarning(UserWarning):
    """Warning that a caption has more tokens than the text encoder reads."""


class UnknownWordsWarning(UserWarning):
    """Warning that captions have parts that the text encoder's tokenizer does not know."""


def unknown_parts(tokenizer: object, caption: str) -> tuple[str, ...]:
    """List the parts of a caption that `tokenizer` does not know, one for each unknown token.

    A tokenizer without offsets gives its unknown token's text for each.
    """
    if not tokenizer.is_fast:
        unknown = tokenizer.unk_token_id
        return tuple(tokenizer.unk_token for token in tokenizer(caption, verbose=False).input_ids if token == unknown)
    encoded = tokenizer(caption, return_offsets_mapping=True, verbose=False)
    pairs = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    return tuple(caption[start:stop] for token, (start, stop) in pairs if token == tokenizer.unk_token_id)


class TextKey(NamedTuple):
    """Everything an embedding depends on besides the encoders; caches store it under this key.

    caption  the text
    length   number of tokens that the caption is padded or cut to; 0 for an encoder with one fixed length
    kind     the base's name for the way to encode the caption
    """

    caption: str
    length: int
    kind: str


@dataclass(frozen=True)
class CaptionKeys:
    """The keys of the embeddings that one sample needs.

    caption  None for a sample without a global caption
    pooled   None for bases without a pooled vector
    """

    caption: TextKey | None
    regions: tuple[TextKey, ...]
    pooled: TextKey | None

    def __iter__(self) -> Iterator[TextKey]:
        keys = (self.caption, *self.regions, self.pooled)
        return iter([key for key in keys if key is not None])


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The embeddings of the captions of one sample.

    caption  [T0, W]; T0 = 0 without a global caption
    regions  N x [Ti, W]
    pooled   [P], None for bases without a pooled vector
    """

    caption: Tensor
    regions: tuple[Tensor, ...]
    pooled: Tensor | None

    @classmethod
    def of(cls, keys: CaptionKeys, known: Mapping[TextKey, Tensor]) -> EncodedText:
        """Look up the embeddings of a sample; an absent global caption gets zero rows."""
        return cls(
            caption=known[keys.caption] if keys.caption else known[keys.regions[0]][:0],
            regions=tuple(known[key] for key in keys.regions),
            pooled=None if keys.pooled is None else known[keys.pooled],
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the number of tokens of the global caption, then of each region."""
        return (len(self.caption), *map(len, self.regions))

    @property
    def embeds(self) -> Tensor:
        """Join the rows of the global caption and of the regions in order: [T, W]."""
        return torch.cat([self.caption, *self.regions])


class TextEncoder(Protocol):
    """The methods of a `Base` that encode captions."""

    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]: ...

    def text_state(self, key: TextKey) -> Hashable: ...


@torch.no_grad()
def encode_texts(
    samples: Sequence[CaptionKeys], encoder: TextEncoder, known: MutableMapping[TextKey, Tensor] | None = None
) -> list[EncodedText]:
    """Encode the captions of samples, each distinct caption once; the tensors are on the CPU.

    known  embeddings of earlier calls, which are reused; new ones are added
    """
    known = {} if known is None else known
    keys = dict.fromkeys(key for sample in samples for key in sample)
    found = {key: known[key] for key in keys if key in known}  # a copy, because a bounded `known` may drop some
    new = dict(encoder.encode_text([key for key in keys if key not in found]))
    known.update(new)
    return [EncodedText.of(sample, found | new) for sample in samples]


class TextCache(MutableMapping[TextKey, Tensor]):
    """Embeddings by `TextKey`, in memory; the least recently used ones are dropped first.

    The full key includes `encoder.text_state`, so a lookup never returns an embedding that another encoder made, or the
    same encoder with another LoRA or precision.

    encoder    a base
    max_bytes  limit for all embeddings together; a single larger embedding is not kept
    """

    def __init__(self, encoder: TextEncoder, max_bytes: int = MAX_BYTES):
        self.encoder, self.max_bytes, self.n_bytes = encoder, max_bytes, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __getitem__(self, key: TextKey) -> Tensor:
        full = self._full(key)
        found = self._kept[full]
        self._kept.move_to_end(full)
        return found

    def __setitem__(self, key: TextKey, embedding: Tensor) -> None:
        self.pop(key, None)
        if embedding.nbytes > self.max_bytes:
            return
        self._kept[self._full(key)] = embedding
        self.n_bytes += embedding.nbytes
        while self.n_bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.n_bytes -= oldest.nbytes

    def __delitem__(self, key: TextKey) -> None:
        self.n_bytes -= self._kept.pop(self._full(key)).nbytes

    def __contains__(self, key: object) -> bool:
        return isinstance(key, TextKey) and self._full(key) in self._kept

    def __iter__(self) -> Iterator[TextKey]:
        """Iterate over the keys of the current encoders, least recently used first."""
        return (key for key, _ in list(self._kept) if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _full(self, key: TextKey) -> tuple[TextKey, Hashable]:
        return key, self.encoder.text_state(key)
