"""Everything the transformer is told about a batch, in one object; generation and training pass the same one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from seg2any.attention.attend import AttentionPlan, Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.system.errors import UserError


@dataclass(frozen=True, eq=False)
class ConditionKeys:
    """Of each block, number -> keys and values [B, C, heads, d] of the condition tokens, after RoPE.

    Empty: the transformer is to fill it. Filled: they stand for the condition tokens, which are left out.
    """

    of_block: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """What they hold, all blocks together."""
        return sum(x.untyped_storage().nbytes() for pair in self.of_block.values() for x in pair)


@dataclass(frozen=True, eq=False)
class Condition:
    """Captions, token layout, attention rules and condition tokens of a batch.

    prompt_embeds:        [B, T, D] text embeddings [global | region 1 .. N | pad]; pad rows are zero
    pooled_prompt_embeds: [B, P] CLIP text embedding
    cond_hidden_states:   [B, C, channels] packed latents of the kept contour tokens, or None; pad rows are zero
    tap:                  see `AttentionPlan`
    cond_keys:            what is known of the condition tokens before the first step, see `models.cond_cache`

    Frozen, so the masks in `plan` are built once for all the denoising steps that share this object.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    tokens: TokenLayout
    settings: ConditionSettings
    cond_hidden_states: torch.Tensor | None = None
    tap: Tap | None = None
    cond_keys: ConditionKeys | None = None

    def __post_init__(self) -> None:
        n_cond = 0 if self.cond_hidden_states is None else self.cond_hidden_states.shape[1]
        given = (self.prompt_embeds.shape[0], self.prompt_embeds.shape[1], n_cond)
        expected = (self.tokens.batch_size, self.tokens.n_text, self.tokens.n_cond)
        if given != expected:
            raise UserError(f"(batch, text, cond) tokens are {given} but the token layout says {expected}")

    @cached_property
    def plan(self) -> AttentionPlan:
        """Which pattern every block uses; kept with the condition, for all steps."""
        return AttentionPlan(self.tokens, self.settings, self.tap)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """The same condition on a device, its embeddings and latents in a dtype (None = unchanged)."""
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=self.pooled_prompt_embeds.to(device, dtype),
            tokens=self.tokens.to(device),
            cond_hidden_states=None if self.cond_hidden_states is None else self.cond_hidden_states.to(device, dtype),
        )
