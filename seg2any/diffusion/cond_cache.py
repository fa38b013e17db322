"""Isolated condition tokens, computed once per image instead of in every step.

With `cond_attention="isolated"` they see only each other, and their time is always 0 (spec: paper section 3), so what
the image hears of them, their keys and values in every block, depends on neither the noise nor the step. Only guidance
and the pooled caption enter, through the modulation; a run whose guidance changes computes them again.

Memory: 2 x blocks x batch x condition tokens x width numbers, at FLUX.1's size in 16 bit 0.7 MB per token and image:
342 MiB for 512 tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from diffusers import FluxTransformer2DModel

from seg2any.attention.tokens import Kind, TokenLayout
from seg2any.bases.base import Condition, ConditionKeys


class ConditionCache:
    """What one sampling run has computed of its conditions."""

    def __init__(self, transformer: FluxTransformer2DModel):
        self.transformer = transformer
        self._known: dict[Condition, tuple[float, Condition]] = {}
        self._numbers = itertools.count()

    def of(self, condition: Condition, guidance_scale: float) -> Condition:
        """The condition for a step with this guidance: with its keys if it is isolated, else as it is.

        Call it outside of `cache_context`: what is computed here is no step that a step cache may compare with others.
        """
        if not can_keep(condition) or self.transformer.ulysses is not None:
            return condition
        known_scale, known = self._known.get(condition, (None, None))
        if known_scale != guidance_scale:
            with self.transformer.cache_context(f"condition {next(self._numbers)}"):
                known = with_keys(self.transformer, condition, guidance_scale)
            self._known[condition] = (guidance_scale, known)
        return known


def can_keep(condition: Condition) -> bool:
    """Whether its tokens are the same in every step. A tap wants to see them in the attention of each."""
    return condition.settings.cond_attention == "isolated" and condition.tokens.n_cond > 0 and condition.tap is None


@torch.no_grad()
def with_keys(transformer: FluxTransformer2DModel, condition: Condition, guidance_scale: float) -> Condition:
    """The condition with the keys and values of its tokens, by a pass of the transformer that has no others."""
    alone, image = without_image(condition), torch.zeros_like(condition.cond_hidden_states[:, :1])
    transformer(
        hidden_states=image,
        timestep=image.new_zeros(len(image)),
        guidance=image.new_full([len(image)], guidance_scale) if transformer.config.guidance_embeds else None,
        encoder_hidden_states=alone.prompt_embeds,
        pooled_projections=alone.pooled_prompt_embeds,
        joint_attention_kwargs={"condition": alone},
        return_dict=False,
    )
    return replace(condition, cond_keys=alone.cond_keys)


def without_image(condition: Condition) -> Condition:
    """Its condition tokens behind one text and one image token that they do not see; asks for their keys."""
    tokens, n_cond = condition.tokens, condition.tokens.n_cond
    kind = tokens.kind[:, -n_cond - 2 :].clone()
    kind[:, 0], kind[:, 1] = Kind.TEXT_PAD, Kind.IMAGE
    positions = tokens.positions[:, -n_cond - 2 :].clone()
    return replace(
        condition,
        prompt_embeds=torch.zeros_like(condition.prompt_embeds[:, :1]),
        tokens=TokenLayout(kind, torch.zeros_like(kind, dtype=torch.int64), positions, 1, 1, n_cond),
        settings=replace(condition.settings, attention_mask_method="base"),  # among themselves, all methods are alike
        cond_keys=ConditionKeys(),
    )
