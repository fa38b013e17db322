"""Which mask every block uses, built once per forward pass or sampling run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from seg2any.attention.attend import attend
from seg2any.attention.rules import Attention, AttentionRules, additive_mask
from seg2any.tokens import TokenLayout

Tap = Callable[[int, torch.Tensor, torch.Tensor, "torch.Tensor | None"], None]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Tokens and rules, and the at most two distinct masks that follow from them.

    tap: called before the attention of every block with (block, query, key, mask), query and key [B, L, heads, d]
         after RoPE; `attend.attention_weights` turns any rows of them into weights.
    """

    tokens: TokenLayout
    rules: AttentionRules
    tap: Tap | None = None
    _masks: dict[tuple[Attention, torch.dtype], torch.Tensor | None] = field(default_factory=dict, repr=False)

    def mask(self, block: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        """Additive mask [B, 1, L, L] of a block, counted over double then single blocks; None = all see all."""
        attention = self.rules.at(block)
        if (attention, dtype) not in self._masks:
            mask = additive_mask(self.tokens, attention, self.rules, dtype)
            self._masks[attention, dtype] = mask if mask.any() else None
        return self._masks[attention, dtype]

    def attend(self, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one block, [B, L, heads, d] -> [B, L, heads, d]."""
        device = query.device.type
        kernel_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        mask = self.mask(block, kernel_dtype)
        if self.tap is not None:
            self.tap(block, query, key, mask)
        return attend(query, key, value, mask, self.rules.attention_backend)
