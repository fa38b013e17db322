"""Apply the attention rule to a batch of tokens, one class at a time.

Tokens of equal (kind, entities) form a class: their rows and columns of the mask are equal. So the rule is evaluated
once per pair of classes. All backends take the resulting pattern, and only some of them make an L x L mask from it.
The rule is evaluated on the CPU, so that no GPU is waited for; results are sent to the device of the queries.
Shape suffixes: B batch, L tokens, C classes, N entities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from seg2any.attention.rules import may_attend
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.system.errors import UserError

T = TypeVar("T")
MOST_MASK_BYTES = 2**28  # of one mask [B, L, L]: in 16 bit 11,500 tokens, or 4 samples of 5,700
ROW_ALIGNMENT = 8  # mask rows are stored at multiples of this many elements


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """The distinct pairs (kind, entities) of a batch, ordered by kind, then by entities.

    kind, entities: int64 [C]
    index:          int64 [B, L], the class of every token
    """

    kind: torch.Tensor
    entities: torch.Tensor
    index: torch.Tensor

    @classmethod
    def of(cls, tokens: TokenLayout) -> TokenClasses:
        """Find the classes of all samples of a batch together."""
        entity_sets, entity_set = torch.unique(tokens.entities, return_inverse=True)
        codes, index = torch.unique(tokens.kind.long() * len(entity_sets) + entity_set, return_inverse=True)
        return cls(codes // len(entity_sets), entity_sets[codes % len(entity_sets)], index)


@dataclass(frozen=True, eq=False)
class Coverage:
    """Weights of method `place`: fractions of image tokens that regions cover.

    Query q and key k add log_weights[b, entity[b, q], patch[b, k]] + log_weights[b, entity[b, k], patch[b, q]] to their
    score. Both terms are 0 unless one of the tokens is a region's text and the other an image token.

    log_weights: float32 [B, N + 1, n_image + 1]; the last row and column are 0
    entity:      int64 [B, L], entity of a region's text token, N for all other tokens
    patch:       int64 [B, L], number of an image token, n_image for all other tokens
    """

    log_weights: torch.Tensor
    entity: torch.Tensor
    patch: torch.Tensor

    @classmethod
    def of(cls, tokens: TokenLayout) -> Coverage:
        """Look up the coverage of each token. Raises UserError without method `place`."""
        if tokens.coverage is None:
            raise UserError(
                "attention_mask_method 'place' needs the coverage of every token, but the layout was prepared for "
                "another method; prepare it with 'place'"
            )
        n_entities = tokens.coverage.shape[1]
        bits = torch.arange(n_entities + 1, device=tokens.entities.device)
        entity = ((tokens.entities[..., None] >> bits) & 1).argmax(-1)
        patch = torch.arange(tokens.kind.shape[1], device=tokens.kind.device) - tokens.n_text
        return cls(
            torch.nn.functional.pad(_log(tokens.coverage), (0, 1, 0, 1)),
            entity.where(tokens.kind == Kind.REGION, n_entities),
            patch.expand_as(entity).where(tokens.kind == Kind.IMAGE, tokens.n_image),
        )

    def to(self, dtype: torch.dtype, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Send log weights in `dtype`, entities and patches to a device."""
        return send(self.log_weights.to(dtype), device), send(self.entity, device), send(self.patch, device)


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """The tokens that each token of a batch attends to, in all blocks of one kind.

    Whatever backends derive from it is kept with it and computed once, see `cached`.

    n_queries: only the first n_queries tokens of each sample are queries, all tokens are keys; None = all are queries
    """

    tokens: TokenLayout
    classes: TokenClasses
    attention: Attention
    settings: ConditionSettings
    n_queries: int | None = None
    _cached: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokens: TokenLayout, attention: Attention, settings: ConditionSettings) -> AttentionPattern:
        """Build the pattern in which every token is a query."""
        return cls(tokens, TokenClasses.of(tokens), attention, settings)

    def with_queries(self, n_queries: int) -> AttentionPattern:
        """Return this pattern with only the first `n_queries` tokens of each sample as queries."""
        if n_queries == self.classes.index.shape[1]:
            return self
        given = (self.tokens, self.classes, self.attention, self.settings, n_queries)
        return self.cached(("with queries", n_queries), lambda: AttentionPattern(*given))

    @property
    def query_index(self) -> torch.Tensor:
        """Class of every query, int64 [B, queries]."""
        return self.classes.index[:, : self.n_queries]

    @cached_property
    def log_weights(self) -> torch.Tensor:
        """Log attention weights of a query class (row) for a key class, float32 [C, C].

        0 = full weight, -inf = hidden
        """
        kind, entities = self.classes.kind, self.classes.entities
        image, cond, region = kind == Kind.IMAGE, kind == Kind.COND, kind == Kind.REGION
        weights = may_attend(kind[:, None], entities[:, None], kind, entities, self.attention, self.settings).float()
        guided = (image[:, None] & cond) | (cond[:, None] & image)
        weights = torch.where(guided, weights * self.settings.cond2image_attention_weight, weights)
        if self.coverage is not None:  # replaces the rule between regions' text and the image
            weights = weights.masked_fill((image[:, None] & region) | (region[:, None] & image), 1)
        return _log(weights)

    @cached_property
    def coverage(self) -> Coverage | None:
        """Weights that method `place` adds to those of the classes; None for other methods."""
        return Coverage.of(self.tokens) if self.settings.attention_mask_method == "place" else None

    @cached_property
    def is_full(self) -> bool:
        """True if every query sees every token of its sample with full weight."""
        none = self.log_weights.new_zeros(len(self.classes.index), len(self.classes.kind))
        queries, keys = (none.scatter(1, index, 1) for index in (self.query_index, self.classes.index))
        together = queries.mT @ keys > 0  # [C, C], classes that meet in some sample
        return self.coverage is None and not self.log_weights[together].any()

    def slices(self, dtype: torch.dtype) -> list[slice]:
        """Return slices of the queries, as few as keep the mask rows of each within `MOST_MASK_BYTES`."""
        (n_samples, n_keys), n_queries = self.classes.index.shape, self.query_index.shape[1]
        n_rows = max(1, MOST_MASK_BYTES // (n_samples * _aligned(n_keys) * dtype.itemsize))
        n_rows = math.ceil(n_queries / math.ceil(n_queries / n_rows))
        return [slice(start, min(start + n_rows, n_queries)) for start in range(0, n_queries, n_rows)]

    def masks(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield slices of the queries with their rows of the mask; a whole mask is kept for all blocks and steps."""
        if len(slices := self.slices(dtype)) == 1:
            yield slices[0], self.mask(dtype, device)
            return
        for part in slices:
            yield part, self.rows(part, dtype, device)

    def mask(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the log weight of every pair of query and key, [B, 1, queries, L]; computed once."""
        return self.cached(("mask", dtype, str(device)), lambda: self.rows(slice(self.n_queries), dtype, device))

    def rows(self, part: slice, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the rows of `mask` for a slice of the queries, [B, 1, queries of the slice, L]."""
        index, class_rows = self.cached(("class rows", dtype, str(device)), lambda: self._class_rows(dtype, device))
        sample = torch.arange(len(index), device=device)[:, None]
        rows = class_rows[sample, index[:, part]][..., : index.shape[1]]
        if self.coverage is not None:
            log_weights, entity, patch = self.cached(
                ("coverage", dtype, str(device)), lambda: self.coverage.to(dtype, device)
            )
            rows += log_weights[sample[:, None], entity[:, part, None], patch[:, None]]
            rows += log_weights[sample[:, None], entity[:, None], patch[:, part, None]]
        return rows[:, None]

    def _class_rows(self, dtype: torch.dtype, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Send the class of every token, and the log weights of all keys for each query class, without `coverage`.

        Returns int64 [B, L] and [B, C, L]. Rows are padded to a multiple of ROW_ALIGNMENT, because torch's CUDA kernel
        copies a mask with unaligned rows.
        """
        rows = self.log_weights.to(dtype)[:, self.classes.index].movedim(1, 0)
        rows = torch.nn.functional.pad(rows, (0, _aligned(rows.shape[2]) - rows.shape[2])).contiguous()
        return send(self.classes.index, device), send(rows, device)

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result of `make`, called only the first time a key is used."""
        if key not in self._cached:
            self._cached[key] = make()
        return self._cached[key]


def additive_mask(
    tokens: TokenLayout, attention: Attention, settings: ConditionSettings, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the additive mask [B, 1, L, L]: log weights, 0 = full, -inf = hidden."""
    return AttentionPattern.of(tokens, attention, settings).mask(dtype)


def picture(tokens: TokenLayout, attention: Attention, settings: ConditionSettings, sample: int = 0) -> np.ndarray:
    """Draw the mask of one sample: uint8 RGB [L, L, 3], rows are queries, columns keys.

    A pair has the colour of the key's kind, paler for smaller weights and white where the key is hidden.
    """
    palette = np.array([[230, 159, 0], [0, 158, 115], [86, 180, 233], [204, 121, 167], [120, 120, 120], [60, 60, 60]])
    weight = additive_mask(tokens, attention, settings)[sample, 0].exp().cpu().numpy()[..., None]
    colour = palette[tokens.kind[sample].cpu().numpy()][None]
    return (colour * weight + 255 * (1 - weight)).round().astype(np.uint8)


def _log(weights: torch.Tensor) -> torch.Tensor:
    """Round the exact logarithm to float32.

    Fast float32 logarithms differ between CPUs in the last bit.
    """
    return weights.double().log().float()


def mask_bytes(n_masks: int, shape: tuple[int, int, int], width: int) -> int:
    """Return the bytes of the masks that a batch keeps, or of the slice that it builds at a time.

    n_masks  kinds of blocks, which share one mask each
    shape    (samples, queries, tokens)
    width    bytes of a number
    """
    n_samples, n_queries, n_keys = shape
    one = n_samples * n_queries * _aligned(n_keys) * width
    return n_masks * one if one <= MOST_MASK_BYTES else MOST_MASK_BYTES


def _aligned(n: int) -> int:
    return -(-n // ROW_ALIGNMENT) * ROW_ALIGNMENT


def send(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a CPU tensor to a device without waiting for what the device is computing."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        x = x.pin_memory()  # CUDA waits before it copies memory that is not pinned
    return x.to(device, non_blocking=True)
