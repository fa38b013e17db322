"""Text embeddings kept between calls: each distinct caption of a whole run is encoded once, in bounded memory."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, MutableMapping

from torch import Tensor, nn

from seg2any.bases.flux1.text import TextEncoders, TextKey

MAX_BYTES = 256 * 2**20


class TextCache(MutableMapping[TextKey, Tensor]):
    """The embeddings of an encoder pair by `TextKey`; the least recently used leave first.

    Entries are kept under caption, length, kind and encoder, so those of other encoders, or of these with another LoRA
    or precision, are never handed out.

    encoders   who encodes: a pipeline
    max_bytes  of all embeddings together; a single one that is larger is not kept
    """

    def __init__(self, encoders: TextEncoders, max_bytes: int = MAX_BYTES):
        self.encoders, self.max_bytes, self.n_bytes = encoders, max_bytes, 0
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
        """The keys of the present encoders, least recently used first."""
        return (key for key, *_ in list(self._kept) if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _full(self, key: TextKey) -> tuple[Hashable, ...]:
        encoder = self.encoders.text_encoder if key.kind == "clip" else self.encoders.text_encoder_2
        return (key, weakref.ref(encoder), encoder.dtype, _adapters(encoder))


def _adapters(encoder: nn.Module) -> tuple[str, ...]:
    """The active LoRAs of a text encoder."""
    if not getattr(encoder, "_hf_peft_config_loaded", False):
        return ()
    return tuple(encoder.active_adapters())
