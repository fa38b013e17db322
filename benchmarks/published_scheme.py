"""Run our transformer at the computational cost of the published code.

Written from the description of the published code, not from its text. Inside `published_scheme()`
- image and condition tokens are separate tensors from the first block to the last, joined and split for the attention
  only; every Linear is called once for each, with both adapters on all tokens, one of them scaled to zero;
- attention takes a dense float mask [B, heads, L, L] in the kernel's dtype, built image by image, region by region,
  once for each `Condition`: the published code builds it once per image, and in training once per step.
Text-only layers compute only the adapter they need, which is cheaper than the published code. The outputs equal ours
up to rounding (`tests/test_benchmarks.py`).

The published code itself was run beside this replica on an Intel Xeon, in bf16: the replica's step took 0.79
[0.76..0.86] (332 million weights, 20 regions) and 0.95 [0.89..0.98] (8 heads x 64, 8 regions) of its time. So a ratio
of this replica to ours understates how much quicker ours is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.adapters.routing import COND, Rows
from seg2any.attention.attend import AttentionPlan
from seg2any.attention.kernels import kernel_dtype, masked_sdpa
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.bases.flux1 import transformer
from seg2any.bases.flux1.blocks import RegionalDoubleBlock, RegionalSingleBlock, rotate


@contextlib.contextmanager
def published_scheme() -> Iterator[None]:
    """Make our transformer compute as the published code does, until the context ends.

    A `Condition` keeps its masks, also from one context to the next. The published code builds masks in every training
    step, so build a new condition in every step to measure that.
    """
    with (
        mock.patch.object(RegionalDoubleBlock, "forward", double_block),
        mock.patch.object(RegionalSingleBlock, "forward", single_block),
        mock.patch.object(transformer, "linear", linear_per_branch),
        mock.patch.object(AttentionPlan, "attend", attend_densely),
    ):
        yield


@dataclass(frozen=True)
class Streams:
    """The tensors that go from block to block in place of [image | condition].

    main  [image]; in single blocks [text | image]
    cond  the condition tokens, if any
    """

    main: torch.Tensor
    cond: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor | Streams, rows: Rows) -> Streams:
        """Split [image | condition] into streams; return streams unchanged."""
        if isinstance(x, Streams):
            return x
        return cls(*(part.contiguous() for part in rows.split(x)), *([] if rows.n_cond else [None]))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([self.main] if self.cond is None else [self.main, self.cond])

    def __getitem__(self, index: tuple[slice, slice]) -> torch.Tensor:
        """Return the n image rows for [:, :n], which the transformer takes after the last block."""
        return self.main[:, -index[1].stop :]


def toggled(layer: nn.Module, x: torch.Tensor, is_cond: bool) -> torch.Tensor:
    """Compute layer(x) with all adapters; those of the other branch are scaled to zero."""
    if not isinstance(layer, LoraLayer):
        return layer(x)
    y = layer.base_layer(x)
    for name in layer.active_adapters:
        if name in layer.lora_A:
            delta = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x)))
            y = y + delta * (layer.scaling[name] * ((name == COND) == is_cond))
    return y


def linear_per_branch(layer: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Apply a layer before the blocks to each stream of [image | condition] separately."""
    return torch.cat([toggled(layer, part, i == 1) for i, part in enumerate(rows.split(x))], 1)


def modulation(norm: nn.Module, temb: torch.Tensor, is_cond: bool) -> tuple[torch.Tensor, ...]:
    """Compute shift, scale and gate of one stream: temb [B, 2, D] -> 3 or 6 of [B, 1, D]."""
    embedded = norm.silu(temb[:, 1:] if is_cond else temb[:, :1])
    return toggled(norm.linear, embedded, is_cond).unflatten(-1, (-1, temb.shape[-1])).unbind(-2)


def project(attn: nn.Module, layers: tuple[nn.Module, ...], x: torch.Tensor, is_cond: bool) -> list[torch.Tensor]:
    """Project x [B, L, D] to query, key and value [B, L, heads, head_dim], before their norms."""
    return [toggled(layer, x, is_cond).unflatten(-1, (-1, attn.head_dim)) for layer in layers]


def attention(parts: list[tuple[torch.Tensor, ...]], rotation: torch.Tensor, context) -> list[torch.Tensor]:
    """Attend over the joined streams: (query, key, value) of each -> output [B, L, D] of each.

    Joining makes contiguous tensors [B, heads, L, d], as in the published code.
    """
    query, key, value = (torch.cat([x.transpose(1, 2) for x in xs], 2) for xs in zip(*parts, strict=True))
    query, key = (rotate(x, rotation.transpose(1, 2)) for x in (query, key))
    x = context.attend(*(x.transpose(1, 2) for x in (query, key, value))).flatten(2).to(query.dtype)
    return [part.contiguous() for part in x.split([q.shape[1] for q, _, _ in parts], 1)]


def double_block(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None, joint_attention_kwargs=None):
    """Compute a double block like `RegionalDoubleBlock.forward`, but stream by stream."""
    context, text, attn = joint_attention_kwargs["context"], encoder_hidden_states, self.attn
    streams = list(Streams.of(hidden_states, context.rows))
    mods = [modulation(self.norm1_context, temb, False)]
    mods += [modulation(self.norm1, temb, is_cond) for is_cond in range(len(streams))]
    q, k, v = project(
        attn,
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        self.norm1_context.norm(text) * (1 + mods[0][1]) + mods[0][0],
        False,
    )
    parts = [(attn.norm_added_q(q), attn.norm_added_k(k), v)]
    for is_cond, (x, (shift, scale, *_)) in enumerate(zip(streams, mods[1:], strict=True)):
        x = self.norm1.norm(x) * (1 + scale) + shift
        q, k, v = project(attn, (attn.to_q, attn.to_k, attn.to_v), x, is_cond == 1)
        parts.append((attn.norm_q(q), attn.norm_k(k), v))
    text_out, *outs = attention(parts, image_rotary_emb, context)
    text = finish(text, toggled(attn.to_add_out, text_out, False), mods[0], self.norm2_context, self.ff_context, False)
    for is_cond, out in enumerate(outs):
        out = toggled(attn.to_out[0], out, is_cond == 1)
        streams[is_cond] = finish(streams[is_cond], out, mods[1 + is_cond], self.norm2, self.ff, is_cond == 1)
    return text, Streams(streams[0], streams[1] if len(streams) > 1 else None)


def finish(x, attended, mods, norm: nn.Module, ff: nn.Module, is_cond: bool) -> torch.Tensor:
    """Compute the part of a double block after its attention, for one stream."""
    _, _, gate, shift, scale, gate_ff = mods
    x = x + gate * attended
    inner = norm(x) * (1 + scale) + shift
    inner = toggled(ff.net[2], ff.net[0].gelu(toggled(ff.net[0].proj, inner, is_cond)), is_cond)
    return x + gate_ff * inner


def single_block(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None, joint_attention_kwargs=None):
    """Compute a single block stream by stream; the first one joins text and image."""
    context, attn, text = joint_attention_kwargs["context"], self.attn, encoder_hidden_states
    streams = Streams.of(hidden_states, context.rows)
    if text is not None:
        streams = Streams(torch.cat([text, streams.main], 1), streams.cond)
    inner, parts, mods = [], [], []
    for is_cond, x in enumerate(streams):
        shift, scale, gate = modulation(self.norm, temb, is_cond == 1)
        x = self.norm.norm(x) * (1 + scale) + shift
        q, k, v = project(attn, (attn.to_q, attn.to_k, attn.to_v), x, is_cond == 1)
        parts.append((attn.norm_q(q), attn.norm_k(k), v))
        inner.append(self.act_mlp(toggled(self.proj_mlp, x, is_cond == 1)))
        mods.append(gate)
    outs = attention(parts, image_rotary_emb, context)
    ends = []
    for is_cond, (x, out, hidden, gate) in enumerate(zip(streams, outs, inner, mods, strict=True)):
        ends.append(x + gate * toggled(self.proj_out, torch.cat([out, hidden], 2), is_cond == 1))
    return None, Streams(ends[0], ends[1] if len(ends) > 1 else None)


_masks_of: WeakKeyDictionary[AttentionPlan, dict[tuple[Attention, torch.dtype], torch.Tensor]] = WeakKeyDictionary()


def attend_densely(self: AttentionPlan, block: int, query, key, value) -> torch.Tensor:
    """Compute `AttentionPlan.attend` with a mask [B, heads, L, L], built on first use."""
    attention, masks = self.settings.attention_of(block), _masks_of.setdefault(self, {})
    if (kind := (attention, kernel_dtype(query))) not in masks:
        each = [dense_mask(self.tokens, sample, attention, self.settings) for sample in range(len(query))]
        masks[kind] = torch.stack(each)[:, None].repeat(1, query.shape[2], 1, 1).to(query.device, kernel_dtype(query))
    return masked_sdpa(query, key, value, masks[kind])


def dense_mask(tokens: TokenLayout, sample: int, attention: Attention, rules: ConditionSettings) -> torch.Tensor:
    """Build the log of the attention weights of one image, float32 [L, L], region by region."""
    kind, entities = tokens.kind[sample], tokens.entities[sample]
    of = {each: kind == each for each in Kind}
    weight = torch.zeros(len(kind), len(kind), device=kind.device)
    foreground = of[Kind.IMAGE] & (entities != 0)
    see = [(Kind.GLOBAL, Kind.GLOBAL), (Kind.GLOBAL, Kind.IMAGE), (Kind.IMAGE, Kind.GLOBAL), (Kind.IMAGE, Kind.IMAGE)]
    see += [(Kind.COND, Kind.COND), (Kind.TEXT_PAD, Kind.TEXT_PAD), (Kind.COND_PAD, Kind.COND_PAD)]
    for query, key in see:
        weight[of[query][:, None] & of[key]] = 1.0
    for query, key in ((Kind.IMAGE, Kind.COND), (Kind.COND, Kind.IMAGE)):
        weight[of[query][:, None] & of[key]] = rules.cond2image_attention_weight
    if attention is Attention.AIA:
        weight[foreground[:, None] & (of[Kind.GLOBAL] | of[Kind.IMAGE])] = 0.0
    for entity in range(int(entities.max()).bit_length()):
        member = (entities >> entity) & 1 == 1
        text, image = member & of[Kind.REGION], member & of[Kind.IMAGE]
        pairs = [(text, text), (text, image), (image, text)]
        for query, key in [*pairs, (image, image)] if attention is Attention.AIA else pairs:
            weight[query[:, None] & key] = 1.0
    return weight.log()
