"""The cost model of the published code, on our model and with our numbers: what benchmarks compare against.

Written from its description, not from its text. Inside `published_scheme(transformer)`
- image and condition tokens pass every layer in separate calls, and each call computes both adapters on all of its
  tokens, one of them scaled to zero;
- attention takes a dense float mask [B, heads, L, L], built image by image and region by region.
Results equal ours to rounding (`tests/test_benchmarks.py`), so only the time differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.attention import AttentionPlan
from seg2any.attention.kernel import masked_sdpa
from seg2any.attention.rules import Attention, AttentionRules
from seg2any.models import blocks, transformer
from seg2any.models.routing import Rows
from seg2any.tokens import Kind, TokenLayout


@contextlib.contextmanager
def published_scheme(n_heads: int) -> Iterator[None]:
    """Until the context ends, every `Seg2AnyTransformer2DModel` computes as the published code does.

    A `Condition` keeps its masks, so one that is made per step has them built per step.
    """
    with (
        mock.patch.object(blocks, "linear", linear_per_branch),
        mock.patch.object(transformer, "linear", linear_per_branch),
        mock.patch.object(AttentionPlan, "attend", dense_attend(n_heads)),
    ):
        yield


def linear_per_branch(layer: nn.Module, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """layer(x), the condition rows in a call of their own, with every adapter on every row."""
    if not isinstance(layer, LoraLayer):
        return torch.cat([layer(part) for part in rows.split(x)], 1)
    outputs = []
    for part, is_cond in zip(rows.split(x), (False, True), strict=False):
        y = layer.base_layer(part)
        for name in layer.active_adapters:
            if name in layer.lora_A:
                acts = (name in rows.cond_adapters) == is_cond
                delta = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](part)))
                y = y + delta * (layer.scaling[name] * acts)
        outputs.append(y)
    return torch.cat(outputs, 1)


def dense_attend(n_heads: int):
    """`AttentionPlan.attend` with masks that are built on first use of a plan, for all heads."""

    masks_of: WeakKeyDictionary[AttentionPlan, dict[Attention, torch.Tensor]] = WeakKeyDictionary()

    def attend_densely(self: AttentionPlan, block: int, query, key, value) -> torch.Tensor:
        attention, masks = self.rules.at(block), masks_of.setdefault(self, {})
        if attention not in masks:
            each = [dense_mask(self.tokens, sample, attention, self.rules) for sample in range(len(query))]
            masks[attention] = torch.stack(each)[:, None].repeat(1, n_heads, 1, 1)
        return masked_sdpa(query, key, value, masks[attention].to(query.dtype))

    return attend_densely


def dense_mask(tokens: TokenLayout, sample: int, attention: Attention, rules: AttentionRules) -> torch.Tensor:
    """log of the attention weights float32 [L, L] of one image, one region after the other."""
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
    if attention is Attention.ISOLATED:
        weight[foreground[:, None] & (of[Kind.GLOBAL] | of[Kind.IMAGE])] = 0.0
    for entity in range(int(entities.max()).bit_length()):
        member = (entities >> entity) & 1 == 1
        text, image = member & of[Kind.REGION], member & of[Kind.IMAGE]
        pairs = [(text, text), (text, image), (image, text)]
        for query, key in [*pairs, (image, image)] if attention is Attention.ISOLATED else pairs:
            weight[query[:, None] & key] = 1.0
    return weight.log()
