"""Run FLUX's blocks with a third stream: [text | image | condition].

The paper's overview figure shows them.

The condition rows go through the weights of the image branch, with an adapter of their own and with the time embedding
of t = 0. They follow the image rows in the visual stream [image | condition], the blocks' `hidden_states`; text stays
in `encoder_hidden_states`, as in FLUX. Only `forward` differs from the stock blocks. Without condition rows it returns
the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
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

from seg2any.adapters.routing import Rows, linear, linears
from seg2any.bases.flux1.context import BlockContext

TEXT = Rows()  # the text stream has no condition rows


@dataclass(frozen=True)
class Modulation:
    """Shift, scale and gate of a layer, each [B, 1 or 2, D].

    Entry 0 acts on text or image rows, entry 1 on condition rows.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor
    rows: Rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (1 + scale) + shift for x [B, L, D]."""
        return self._sum(self.shift, x, 1 + self.scale, self.rows.of_modulation)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return residual + gate x for residual and x [B, L, D]."""
        return self._sum(residual, x, self.gate, self.rows)

    def _sum(self, term: torch.Tensor, x: torch.Tensor, factor: torch.Tensor, rows_of_term: Rows) -> torch.Tensor:
        """Return term + x factor, with each row's entry of the factor."""
        if not self.rows.n_cond:
            return term + x * factor  # rounded as in stock FLUX
        parts = zip(rows_of_term.split(term), self.rows.split(x), self.rows.of_modulation.split(factor), strict=True)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.cat([torch.addcmul(*part) for part in parts], 1)
        total = torch.empty_like(x, dtype=torch.result_type(term, x))
        for part, out in zip(parts, self.rows.split(total), strict=True):
            torch.addcmul(*part, out=out)
        return total


def modulations(norm: nn.Module, temb: torch.Tensor, rows: Rows) -> Iterator[Modulation]:
    """Yield the modulation of the attention and, in double blocks, of the MLP.

    temb  [B, 1 or 2, D] embedded times
    """
    chunks = linear(norm.linear, norm.silu(temb), rows.of_modulation).unflatten(-1, (-1, temb.shape[-1])).unbind(-2)
    for first in range(0, len(chunks), 3):
        yield Modulation(*chunks[first : first + 3], rows)


def feed_forward(ff: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Apply the stock MLP to x [B, L, D], each row with the adapters of its stream."""
    activation, dropout, out = ff.net
    return linear(out, dropout(activation.gelu(linear(activation.proj, x, rows))), rows)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Apply RoPE, cos and sin [B or 1, L, 1, d / 2, 2], to query or key [B, L, heads, d].

    Compiled blocks use the stock sum, because compilers handle no complex numbers; eager ones the quicker complex form.
    """
    pairs, (cos, sin) = x.float().unflatten(-1, (-1, 2)), rotation.unbind(-1)
    if torch.compiler.is_compiling():
        real, imaginary = pairs.unbind(-1)
        rotated = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)
    elif x.device.type == "cpu":
        # One complex product would round some numbers twice, others once, depending on processor and threads. In these
        # two one half of each sum is zero, so the result is the stock model's bit for bit.
        pairs = torch.view_as_complex(pairs)
        rotated = torch.view_as_real((pairs * (1j * sin)).add_(pairs * cos))
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return rotated.flatten(-2).to(x.dtype)


class RegionalAttnProcessor(FluxAttnProcessor):
    """The attention of a block over [text | image | condition]."""

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
            return (y.unflatten(-1, (-1, attn.head_dim)) for y in linears((to_q, to_k, to_v), x, rows))

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
        # contiguous, because in 16 bit a Linear rounds a view once more
        text, visual = (part.contiguous() for part in x.split([n_text, x.shape[1] - n_text], 1))
        to_out, dropout = attn.to_out
        return dropout(linear(to_out, visual, context.rows)), linear(attn.to_add_out, text, TEXT)


class RegionalDoubleBlock(FluxTransformerBlock):
    """A double block: text and [image | condition] have separate weights and one attention."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new text rows [B, T, D] and new visual rows [B, I + C, D].

        hidden_states          visual rows [B, I + C, D]
        encoder_hidden_states  text rows [B, T, D]
        temb                   [B, 1 or 2, D], embedded times of the image and of the condition
        image_rotary_emb       cos and sin [B or 1, L, 1, d / 2, 2], see `rotate`
        joint_attention_kwargs {"context": BlockContext}
        """
        context: BlockContext = joint_attention_kwargs["context"]
        visual, text, rows = hidden_states, encoder_hidden_states, context.rows
        visual_mod, visual_mlp = modulations(self.norm1, temb, rows)
        text_mod, text_mlp = modulations(self.norm1_context, temb[:, :1], TEXT)

        visual_out, text_out = self.attn(
            hidden_states=visual_mod(self.norm1.norm(visual)),
            encoder_hidden_states=text_mod(self.norm1_context.norm(text)),
            image_rotary_emb=image_rotary_emb,
            context=context,
        )
        visual = visual_mod.add(visual, visual_out)
        text = text_mod.add(text, text_out)
        visual = visual_mlp.add(visual, feed_forward(self.ff, visual_mlp(self.norm2(visual)), rows))
        text = text_mlp.add(text, feed_forward(self.ff_context, text_mlp(self.norm2_context(text)), TEXT))
        return within_fp16(text), visual


class RegionalSingleBlock(FluxSingleTransformerBlock):
    """A single block: [text | image | condition] share weights; attention and MLP are parallel."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new text rows and new visual rows; arguments as in `RegionalDoubleBlock.forward`."""
        context: BlockContext = joint_attention_kwargs["context"]
        n_text, rows = encoder_hidden_states.shape[1], context.rows
        residual = torch.cat([encoder_hidden_states, hidden_states], 1)
        (mod,) = modulations(self.norm, temb, rows)
        x = mod(self.norm.norm(residual))
        hidden = self.act_mlp(linear(self.proj_mlp, x, rows))
        x = self.attn(hidden_states=x, image_rotary_emb=image_rotary_emb, context=context)
        x = mod.add(residual, linear(self.proj_out, torch.cat([x, hidden], 2), rows))
        return within_fp16(x).split([n_text, x.shape[1] - n_text], 1)


def within_fp16(x: torch.Tensor) -> torch.Tensor:
    """Clip float16 to its finite range, as stock FLUX does."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
