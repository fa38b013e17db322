"""Who sees whom in a batch, by classes of tokens: what every backend is given.

Tokens of equal (kind, entities) have equal rows and columns, so the rules are asked once per pair of such classes and
nothing of size L x L is needed to say what follows from them. Shape suffixes: B batch, L tokens, C classes, N entities.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch

from seg2any.attention.rules import may_attend
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.system.errors import UserError

T = TypeVar("T")
QUERIES_AT_A_TIME = 512
ROW_ALIGNMENT = 8  # numbers


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """The distinct (kind, entities) of a batch, ordered by kind, then by entities.

    kind, entities: int64 [C]
    index:          int64 [B, L], the class of every token
    """

    kind: torch.Tensor
    entities: torch.Tensor
    index: torch.Tensor

    @classmethod
    def of(cls, tokens: TokenLayout) -> TokenClasses:
        """The classes of a batch, over all of its samples."""
        entity_sets, entity_set = torch.unique(tokens.entities, return_inverse=True)
        codes, index = torch.unique(tokens.kind.long() * len(entity_sets) + entity_set, return_inverse=True)
        return cls(codes // len(entity_sets), entity_sets[codes % len(entity_sets)], index)


@dataclass(frozen=True, eq=False)
class Coverage:
    """PLACE: between a region's text and the image, the weight is the fraction of the image token that it covers.

    Added to a score: `log_weights[b, entity[b, q], place[b, k]] + log_weights[b, entity[b, k], place[b, q]]`, both of
    which are 0 but for a region's text and an image token.

    log_weights: float32 [B, N + 1, n_image + 1], last row and column 0
    entity:      int64 [B, L], N for all but a region's text
    place:       int64 [B, L], n_image for all but image tokens
    """

    log_weights: torch.Tensor
    entity: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, tokens: TokenLayout) -> Coverage:
        """Raises UserError if the layout was not prepared for method `place`."""
        if tokens.coverage is None:
            raise UserError("method 'place' needs the coverage of every token: prepare the layout with method 'place'")
        n_entities = tokens.coverage.shape[1]
        bits = torch.arange(n_entities + 1, device=tokens.entities.device)
        entity = ((tokens.entities[..., None] >> bits) & 1).argmax(-1)
        place = torch.arange(tokens.kind.shape[1], device=tokens.kind.device) - tokens.n_text
        return cls(
            torch.nn.functional.pad(_log(tokens.coverage), (0, 1, 0, 1)),
            entity.where(tokens.kind == Kind.REGION, n_entities),
            place.expand_as(entity).where(tokens.kind == Kind.IMAGE, tokens.n_image),
        )


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """The attention of one kind of block over a batch. What backends make of it is kept here and made once.

    n_queries: only the first so many tokens of each sample ask, while all are seen; None = all ask
    """

    tokens: TokenLayout
    classes: TokenClasses
    attention: Attention
    settings: ConditionSettings
    n_queries: int | None = None
    _cached: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokens: TokenLayout, attention: Attention, settings: ConditionSettings) -> AttentionPattern:
        """All tokens ask."""
        return cls(tokens, TokenClasses.of(tokens), attention, settings)

    def with_queries(self, n_queries: int) -> AttentionPattern:
        """The same for the first so many tokens as queries."""
        if n_queries == self.classes.index.shape[1]:
            return self
        given = (self.tokens, self.classes, self.attention, self.settings, n_queries)
        return self.cached(("with queries", n_queries), lambda: AttentionPattern(*given))

    @property
    def query_index(self) -> torch.Tensor:
        """int64 [B, queries], the class of every token that asks."""
        return self.classes.index[:, : self.n_queries]

    @cached_property
    def log_weights(self) -> torch.Tensor:
        """float32 [C, C]: log attention weight of a query class (row) for a key class; 0 = full, -inf = never."""
        kind, entities = self.classes.kind, self.classes.entities
        image, cond, region = kind == Kind.IMAGE, kind == Kind.COND, kind == Kind.REGION
        weights = may_attend(kind[:, None], entities[:, None], kind, entities, self.attention, self.settings).float()
        guided = (image[:, None] & cond) | (cond[:, None] & image)
        weights = torch.where(guided, weights * self.settings.cond2image_attention_weight, weights)
        if self.coverage is not None:  # decides alone
            weights = weights.masked_fill((image[:, None] & region) | (region[:, None] & image), 1)
        return _log(weights)

    @cached_property
    def coverage(self) -> Coverage | None:
        """What method `place` adds to the classes' weights."""
        return Coverage.of(self.tokens) if self.settings.attention_mask_method == "place" else None

    @cached_property
    def is_open(self) -> bool:
        """Whether every query sees every token of its sample with full weight."""
        none = self.log_weights.new_zeros(len(self.classes.index), len(self.classes.kind))
        asking, seen = (none.scatter(1, index, 1) for index in (self.query_index, self.classes.index))
        together = asking.mT @ seen > 0
        return self.coverage is None and not self.log_weights[together].any()

    @property
    def parts(self) -> list[slice]:
        """The queries, so many at a time that their rows are of no account in memory."""
        n_queries = self.query_index.shape[1]
        starts = range(0, n_queries, QUERIES_AT_A_TIME)
        return [slice(start, min(start + QUERIES_AT_A_TIME, n_queries)) for start in starts]

    def mask(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights' logarithm for every pair of query and token, [B, 1, queries, L], made once."""
        return self.cached(("mask", dtype), lambda: self.rows(slice(self.n_queries), dtype))

    def rows(self, part: slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The part of `mask` that is of some queries, [B, 1, queries, L]: copies of their classes' rows."""
        index, class_rows = self.classes.index, self.cached(("class rows", dtype), lambda: self._class_rows(dtype))
        sample = torch.arange(len(index), device=index.device)[:, None]
        rows = class_rows[sample, index[:, part]][..., : index.shape[1]]
        if self.coverage is not None:
            log_weights, entity, place = self.coverage.log_weights.to(dtype), self.coverage.entity, self.coverage.place
            rows += log_weights[sample[:, None], entity[:, part, None], place[:, None]]
            rows += log_weights[sample[:, None], entity[:, None], place[:, part, None]]
        return rows[:, None]

    def _class_rows(self, dtype: torch.dtype) -> torch.Tensor:
        """[B, C, L]: log weights of every key for a query of each class, but for what `coverage` adds. Rows are longer
        than L if that aligns them: torch's CUDA kernel copies a mask whose rows are not."""
        rows = self.log_weights.to(dtype)[:, self.classes.index].movedim(1, 0)
        return torch.nn.functional.pad(rows, (0, -rows.shape[2] % ROW_ALIGNMENT)).contiguous()

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned on the first call with this key."""
        if key not in self._cached:
            self._cached[key] = make()
        return self._cached[key]


def additive_mask(
    tokens: TokenLayout, attention: Attention, settings: ConditionSettings, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """log of the attention weight of every pair of tokens: [B, 1, L, L], 0 = full weight, -inf = never."""
    return AttentionPattern.of(tokens, attention, settings).mask(dtype)


def _log(weights: torch.Tensor) -> torch.Tensor:
    """Correctly rounded float32 logarithm: the fast float32 ones differ between CPUs in the last bit."""
    return weights.cpu().double().log().float().to(weights.device)
