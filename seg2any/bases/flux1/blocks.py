"""The blocks of FLUX with a third stream: [text | image | condition], the paper's overview figure.

The condition goes through the image branch's weights, with its own adapter and with the time embedding of t = 0. Rows
are ordered [image | condition] in the blocks' `hidden_states`; text stays in `encoder_hidden_states`, as in FLUX.
Only `forward` differs from the stock blocks, and without condition rows its numbers are bit for bit the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn

from seg2any.adapters.routing import Rows, linear
from seg2any.attention.attend import AttentionPlan
from seg2any.attention.kernels import masked_sdpa
from seg2any.bases.base import ConditionKeys

TEXT = Rows()  # text rows have no condition among them


@dataclass(frozen=True)
class BlockContext:
    """What a block knows beside its tensors: its number, its rows, and who attends to whom (None = everybody).

    cond_keys: keys and values of condition tokens, to be used or to be filled
    """

    block: int
    rows: Rows
    plan: AttentionPlan | None
    cond_keys: ConditionKeys | None = None

    @torch.compiler.disable  # or blocks would be compiled again for every layout; flex compiles itself all the same
    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query, key and value [B, L, heads, d] -> what each query gets [B, L, heads, d]."""
        if self.cond_keys is not None:
            if self.rows.n_cond:
                own = (x[:, -self.rows.n_cond :].clone() for x in (key, value))  # not a view that holds all rows
                self.cond_keys.of_block[self.block] = tuple(own)
            else:
                known = self.cond_keys.of_block[self.block]
                key, value = (torch.cat(pair, 1) for pair in zip((key, value), known, strict=True))
        if self.plan is None:
            return masked_sdpa(query, key, value)  # stock FLUX to the bit
        return self.plan.attend(self.block, query, key, value)


def modulation(norm: nn.Module, temb: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, ...]:
    """temb [B, 1 or 2, D] -> shift, scale, gate (twice in double blocks), each [B, 1 or 2, D]."""
    return linear(norm.linear, norm.silu(temb), rows.of_modulation).unflatten(-1, (-1, temb.shape[-1])).unbind(-2)


def affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Modulate x [B, I + C, D]: the image rows by row 0 of scale and shift [B, 2, D], the condition rows by row 1."""
    parts = [part * (1 + scale[:, i, None]) + shift[:, i, None] for i, part in enumerate(rows.split(x))]
    return torch.cat(parts, 1) if rows.n_cond else parts[0]


def add_gated(residual: torch.Tensor, gate: torch.Tensor, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """residual + gate * x, all [B, I + C, D] but the gate [B, 2, D], whose rows are chosen as by `affine`."""
    parts = [gate[:, i, None] * part for i, part in enumerate(rows.split(x))]
    return residual + (torch.cat(parts, 1) if rows.n_cond else parts[0])


def feed_forward(ff: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """x [B, I + C, D] through the stock layers, each row with the adapters of its branch."""
    activation, dropout, out = ff.net
    return linear(out, dropout(activation.gelu(linear(activation.proj, x, rows))), rows)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """RoPE, complex [B or 1, L, 1, d / 2], on query or key [B, L, heads, d].

    One complex product: the same numbers as the stock sum of four, sooner.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class RegionalAttnProcessor(FluxAttnProcessor):
    """Attention over [text | image | condition] by the rules of the block."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: torch.Tensor | None = None,
        context: BlockContext | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        def project(to_q, to_k, to_v, x, rows):
            return (linear(layer, x, rows).unflatten(-1, (-1, attn.head_dim)) for layer in (to_q, to_k, to_v))

        query, key, value = project(attn.to_q, attn.to_k, attn.to_v, hidden_states, context.rows)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            q, k, v = project(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, encoder_hidden_states, TEXT)
            query = torch.cat([attn.norm_added_q(q), query], 1)
            key = torch.cat([attn.norm_added_k(k), key], 1)
            value = torch.cat([v, value], 1)
        query, key = rotate(query, image_rotary_emb), rotate(key, image_rotary_emb)
        x = context.attend(query, key, value).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return x
        n_text = encoder_hidden_states.shape[1]
        # contiguous: on a view, a Linear in 16 bit rounds once more
        text, image = (part.contiguous() for part in x.split([n_text, x.shape[1] - n_text], 1))
        to_out, dropout = attn.to_out
        return dropout(linear(to_out, image, context.rows)), linear(attn.to_add_out, text, TEXT)


class RegionalDoubleBlock(FluxTransformerBlock):
    """Text and [image | condition] with weights of their own and one attention."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [image | condition] [B, I + C, D] and text [B, T, D] -> the new text, the new [image | condition].

        temb: [B, 1 or 2, D], embedded times of the image and of the condition; image_rotary_emb: see `rotate`
        """
        context: BlockContext = joint_attention_kwargs["context"]
        image, text, rows = hidden_states, encoder_hidden_states, context.rows
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation(self.norm1, temb, rows)
        t_shift, t_scale, t_gate, t_shift_ff, t_scale_ff, t_gate_ff = modulation(self.norm1_context, temb[:, :1], TEXT)

        image_out, text_out = self.attn(
            hidden_states=affine(self.norm1.norm(image), scale, shift, rows),
            encoder_hidden_states=affine(self.norm1_context.norm(text), t_scale, t_shift, TEXT),
            image_rotary_emb=image_rotary_emb,
            context=context,
        )
        image = add_gated(image, gate, image_out, rows)
        text = add_gated(text, t_gate, text_out, TEXT)

        image_out = feed_forward(self.ff, affine(self.norm2(image), scale_ff, shift_ff, rows), rows)
        text_out = feed_forward(self.ff_context, affine(self.norm2_context(text), t_scale_ff, t_shift_ff, TEXT), TEXT)
        image = add_gated(image, gate_ff, image_out, rows)
        text = add_gated(text, t_gate_ff, text_out, TEXT)
        return within_fp16(text), image


class RegionalSingleBlock(FluxSingleTransformerBlock):
    """[text | image | condition] with shared weights; attention and feed-forward side by side."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the double block: [image | condition] [B, I + C, D] and text [B, T, D] -> text, [image | condition]."""
        context: BlockContext = joint_attention_kwargs["context"]
        n_text, rows = encoder_hidden_states.shape[1], context.rows
        residual = torch.cat([encoder_hidden_states, hidden_states], 1)
        shift, scale, gate = modulation(self.norm, temb, rows)
        x = affine(self.norm.norm(residual), scale, shift, rows)
        hidden = self.act_mlp(linear(self.proj_mlp, x, rows))
        x = self.attn(hidden_states=x, image_rotary_emb=image_rotary_emb, context=context)
        x = add_gated(residual, gate, linear(self.proj_out, torch.cat([x, hidden], 2), rows), rows)
        return within_fp16(x).split([n_text, x.shape[1] - n_text], 1)


def within_fp16(x: torch.Tensor) -> torch.Tensor:
    """Clipped to what float16 can hold, as stock FLUX does."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
