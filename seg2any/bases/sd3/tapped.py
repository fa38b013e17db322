"""Show query and key of SD3's joint attention to a tap; the output stays the same bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

from seg2any.attention.attend import AttentionPlan, Tap


class TappedProcessor(JointAttnProcessor2_0):
    """The stock attention of one block, with a tap before it.

    The tap gets tokens in the order [text | image], which FLUX and `TokenLayout` have; SD3's own is [image | text].
    """

    def __init__(self, block: int, tap: Tap, plan: AttentionPlan):
        super().__init__()
        self.block, self.tap, self.plan = block, tap, plan

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Call the tap, then compute the stock attention."""

        def heads(x: Tensor, norm: torch.nn.Module | None) -> Tensor:
            x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # a norm over the last axis, as in the stock code
            return (x if norm is None else norm(x)).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        query = [heads(attn.add_q_proj(text), attn.norm_added_q), heads(attn.to_q(image), attn.norm_q)]
        key = [heads(attn.add_k_proj(text), attn.norm_added_k), heads(attn.to_k(image), attn.norm_k)]
        self.tap(self.block, torch.cat(query, 1), torch.cat(key, 1), self.plan.pattern(self.block))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


@dataclass(frozen=True)
class Blocks:
    """The joint attentions of a transformer, in order."""

    attentions: tuple[Attention, ...]

    @classmethod
    def of(cls, transformer: SD3Transformer2DModel) -> Blocks:
        """Find them; the second attention of SD3.5's first blocks sees no text."""
        return cls(tuple(block.attn for block in transformer.transformer_blocks))

    @contextmanager
    def tapped(self, tap: Tap | None, plan: AttentionPlan) -> Iterator[None]:
        """Show every block to a tap inside this context, and restore the processors after it."""
        before = [attention.processor for attention in self.attentions]
        try:
            if tap is not None:
                for number, attention in enumerate(self.attentions):
                    attention.set_processor(TappedProcessor(number, tap, plan))
            yield
        finally:
            for attention, processor in zip(self.attentions, before, strict=True):
                attention.set_processor(processor)
