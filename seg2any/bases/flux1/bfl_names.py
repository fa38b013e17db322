"""Find FLUX.1's weights in files with Black Forest Labs' names, which ComfyUI, kohya's trainers and GGUF files share.

One layer there may hold several of diffusers': the rows of `qkv` are those of to_q, to_k and to_v, one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Layer in the file -> layers of the network whose rows it holds, in this order.
DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
OUTER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
SWAPPED = "norm_out.linear"  # shift above scale in the file, scale above shift in diffusers


@dataclass(frozen=True)
class Scheme:
    """Names in a file, from which the sizes of a network are read: lists of blocks, layers, and a weight."""

    double: str
    single: str
    image_in: str
    text_in: str
    pooled_in: str
    guidance_in: str
    out: str
    head_norm: str


BFL = Scheme(
    *("double_blocks", "single_blocks", "img_in", "txt_in", "vector_in.in_layer", "guidance_in.in_layer"),
    *("final_layer.linear", "double_blocks.0.img_attn.norm.query_norm.scale"),
)
DIFFUSERS = Scheme(
    *("transformer_blocks", "single_transformer_blocks", "x_embedder", "context_embedder"),
    *(f"time_text_embed.{name}_embedder.linear_1" for name in ("text", "guidance")),
    *("proj_out", "transformer_blocks.0.attn.norm_q.weight"),
)


@dataclass(frozen=True)
class Place:
    """The tensor of a file that holds a weight, and the ranges of its rows there, in order; (): all of them."""

    name: str
    rows: tuple[tuple[int, int], ...] = ()


def places_of(scheme: Scheme, shapes: Mapping[str, Sequence[int]]) -> dict[str, Place]:
    """Map each weight of a network, given by name and shape, to its place in a file."""
    if scheme is DIFFUSERS:
        return {name: Place(name) for name in shapes}
    return dict(_bfl_places(shapes))


def file_shapes(places: Mapping[str, Place], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the shape that each tensor of a file must have for a network of `shapes`."""
    found: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        rows, *rest = shapes[name]
        found[place.name] = (found.get(place.name, (0,))[0] + rows, *rest)
    return found


def _bfl_places(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Place]]:
    for here, layers in _layers(shapes):
        for kind in ("weight", "bias"):
            names = [f"{layer}.{kind}" for layer in layers]
            if not all(name in shapes for name in names):  # norms have no bias, schnell has no guidance
                continue
            place = f"{here}.scale" if here.endswith("_norm") else f"{here}.{kind}"
            begin = 0
            for name in names:
                end = begin + shapes[name][0]
                yield name, Place(place, _rows(name, begin, end, alone=len(names) == 1))
                begin = end


def _rows(name: str, begin: int, end: int, alone: bool) -> tuple[tuple[int, int], ...]:
    if name.startswith(SWAPPED):
        return (end // 2, end), (begin, end // 2)
    return () if alone else ((begin, end),)


def _layers(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each layer of the file and the network's layers in it."""
    yield from OUTER.items()
    for there, here, layers in ((DIFFUSERS.double, BFL.double, DOUBLE), (DIFFUSERS.single, BFL.single, SINGLE)):
        blocks = {name.split(".")[1] for name in shapes if name.startswith(f"{there}.")}
        for block in sorted(blocks, key=int):
            for layer, inner in layers.items():
                yield f"{here}.{block}.{layer}", tuple(f"{there}.{block}.{name}" for name in inner)
