"""Which pattern every block uses, built once per forward pass or sampling run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from seg2any.attention.attend import attend
from seg2any.attention.kernel import kernel_dtype
from seg2any.attention.pattern import AttentionPattern, TokenClasses
from seg2any.attention.rules import Attention, AttentionRules
from seg2any.tokens import TokenLayout

Tap = Callable[[int, torch.Tensor, torch.Tensor, "torch.Tensor | None"], None]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Tokens and rules, and the at most two distinct patterns that follow from them.

    tap: called before the attention of every block with (block, query, key, mask), query and key [B, L, heads, d]
         after RoPE; `attend.attention_weights` turns any rows of them into weights. A plan with a tap builds the mask
         [B, 1, L, L] whatever the backend needs.
    """

    tokens: TokenLayout
    rules: AttentionRules
    tap: Tap | None = None
    _patterns: dict[Attention, AttentionPattern] = field(default_factory=dict, repr=False)

    @cached_property
    def classes(self) -> TokenClasses:
        """Shared by the patterns of all blocks."""
        return TokenClasses.of(self.tokens)

    def pattern(self, block: int) -> AttentionPattern:
        """Who sees whom in a block, counted over double then single blocks."""
        attention = self.rules.at(block)
        if attention not in self._patterns:
            self._patterns[attention] = AttentionPattern(self.tokens, self.classes, attention, self.rules)
        return self._patterns[attention]

    def mask(self, block: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        """Additive mask [B, 1, L, L] of a block; None = all see all."""
        pattern = self.pattern(block)
        return None if pattern.is_open else pattern.mask(dtype)

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one block: query [B, queries, heads, d], the first of the tokens, or all; key and value
        [B, L, heads, d] -> [B, queries, heads, d]."""
        if self.tap is not None:
            self.tap(block, query, key, self.mask(block, kernel_dtype(query)))
        return attend(query, key, value, self.pattern(block).asked_by(query.shape[1]), self.rules.attention_backend)
