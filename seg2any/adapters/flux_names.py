"""Translate the names of FLUX's layers between diffusers and the original code, which kohya and ComfyUI follow.

The original code computes query, key and value of a block as one layer, and the MLP with them in single blocks: one
original layer is then several layers of diffusers, whose outputs follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

DOUBLE = {  # in double_blocks.N -> in transformer_blocks.N
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE = {  # in single_blocks.N -> in single_transformer_blocks.N
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
OTHERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SWAPPED = "final_layer.adaLN_modulation.1"  # gives shift and scale, the layer of diffusers scale and shift
STACKS = {"transformer_blocks": ("double_blocks", DOUBLE), "single_transformer_blocks": ("single_blocks", SINGLE)}


def original_layers(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map original names to the layers of diffusers that they stand for, as far as `layers` are named there."""
    layers = set(layers)
    blocks = {match[0] for name in layers if (match := re.match(r"(single_)?transformer_blocks\.\d+", name))}
    found = {original: (layer,) for original, layer in OTHERS.items() if layer in layers}
    for block in sorted(blocks):
        stack, number = block.split(".")
        original_stack, table = STACKS[stack]
        for original, parts in table.items():
            named = tuple(f"{block}.{part}" for part in parts)
            if layers & {*named}:
                found[f"{original_stack}.{number}.{original}"] = named
    return found


def swap_halves(up: Tensor) -> Tensor:
    """Exchange the halves of the outputs [out, rank] of `SWAPPED`."""
    return torch.cat(up.chunk(2)[::-1])
