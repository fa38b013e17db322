"""Estimate the memory that making images takes, from sizes alone, before anything is loaded.

With e bytes per element, a batch of B images of H x W pixels, L tokens each (text + image + condition), width d:

    text       as the base says              of the encoder of captions, for one pass
    denoising  e B L d (13.3 + 0.8 adapters) one block at its widest: residual, attention, and the feed-forward layer's
               4 d before and after its GELU. With e < 4 attention may be wider: 3.1 e B L d more than the block, since
               RoPE is computed in fp32; or 12 d of the rows and 2 d of the keys, 4 d beside isolated condition tokens,
               which are copied.
               A mask is kept for each kind of block, e B L^2; of more than 256 MiB, 256 MiB are built at a time.
               Isolated condition tokens are in none of the L; 2 e B d each, for every block
    decoding   e B H W max(5 c0, 3 c1)        c0, c1: channels of the VAE's two widest maps; B = 1 and at most a tile
                                              of the VAE's own size where it decodes in parts

Each is a stage with its networks on the device, and the peak is the largest of the three. Weights by mode:

    full           all networks in all stages; fp8 on a CPU as well
    offload        the stage's network
    group_offload  twice the stage's largest layer, and what is in no Linear or convolution
    int8 nf4 fp8   the stage's network; of the transformer, Linear weights take 1, 0.52 and 1 bytes. fp8 leaves those of
                   the modulations alone (as diffusers does). nf4 and fp8 unpack one layer at a time to e bytes
    adapters       e each, with the transformer; folded ones twice, since the stacks of their products are kept

The coefficients were counted in the code and checked against what is alive at once (tests/test_memory_estimate.py).
The CUDA context and what the allocator loses to fragments are the reserve of 1 GiB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from torch import nn

from seg2any.attention.pattern import mask_bytes
from seg2any.bases.flux1.text import text_bytes

GIB = 2**30
RESERVE = GIB
BYTES_OF_LINEAR = {"int8": 1.0, "nf4": 0.52, "fp8": 1.0}  # nf4: 4 bits, and a scale for every 64 weights
WIDEST_BLOCK, OF_ADAPTERS, OF_ROPE, BESIDE_KEYS = 13.3, 0.8, 3.1, 12


@dataclass(frozen=True)
class Request:
    """The images to make: `batch` of `size` (H, W) pixels at a time.

    n_tokens   of the longest sample: text, image and condition, of which `n_kept` isolated ones
    n_masks    kinds of blocks with a mask: 2 with attribute isolation, else 1
    n_captions tokens of all captions that the encoder reads in one pass, padding included; `caption_length` of one
    in_parts   decoding image by image and in tiles, which all modes but `full` do anyway
    """

    size: tuple[int, int]
    batch: int
    n_tokens: int
    n_captions: int
    caption_length: int
    n_kept: int = 0
    n_masks: int = 2
    in_parts: bool = False


@dataclass(frozen=True)
class Networks:
    """The networks of a pipeline on the meta device, and its adapters.

    text_encoders  the last one reads every caption
    n_adapter      parameters of the adapters; `is_folded`: whether they are merged into the weights
    """

    transformer: nn.Module
    text_encoders: tuple[nn.Module, ...]
    vae: nn.Module
    n_adapter: int = 0
    is_folded: bool = False


def predict(networks: Networks, request: Request, mode: str, width: int, device: str = "cuda") -> dict[str, int]:
    """Estimate the bytes at the worst moment of each stage, by its name.

    mode    a memory mode
    width   bytes per element
    device  kind of device
    """
    all_stay = mode == "full" or (mode == "fp8" and device == "cpu")
    activations = {
        "text": text_bytes(networks.text_encoders[-1].config, request.n_captions, request.caption_length, width),
        "denoising": activation_bytes(
            networks.transformer.config,
            request.batch,
            request.n_tokens,
            width,
            has_adapters=networks.n_adapter > 0,
            n_kept=request.n_kept,
            n_masks=request.n_masks,
        ),
        "decoding": decoder_bytes(networks.vae.config, request, width, in_parts=request.in_parts or mode != "full"),
    }
    weights = {
        "text": (sum if all_stay else max)(_stored(network, mode, width) for network in networks.text_encoders),
        "denoising": transformer_bytes(networks.transformer, mode, width)
        + width * networks.n_adapter * (2 if networks.is_folded else 1),
        "decoding": _stored(networks.vae, mode, width),
    }
    if all_stay:
        weights = dict.fromkeys(weights, sum(weights.values()))
    return {stage: weights[stage] + activations[stage] for stage in weights}


def activation_bytes(
    sizes: Mapping[str, Any],
    batch: int,
    n_tokens: int,
    width: int,
    has_adapters: bool = True,
    n_kept: int = 0,
    n_masks: int = 2,
) -> int:
    """Estimate the bytes alive at once, without gradients, beside weights and inputs."""
    d, asking = sizes["num_attention_heads"] * sizes["attention_head_dim"], n_tokens - n_kept
    block = (WIDEST_BLOCK + OF_ADAPTERS * has_adapters) * d * asking
    rotated = block + OF_ROPE * d * asking if width < 4 else 0
    copied = (BESIDE_KEYS * asking + (4 if n_kept else 2) * n_tokens) * d
    kept = 2 * (sizes["num_layers"] + sizes["num_single_layers"]) * n_kept * d
    masks = mask_bytes(n_masks, (batch, asking, n_tokens), width)
    return int(width * batch * (max(block, rotated, copied) + kept)) + masks


def decoder_bytes(sizes: Any, request: Request, width: int, in_parts: bool) -> int:
    """Estimate the bytes alive at once while the VAE decodes, a tile of one image or all images."""
    c0, c1 = (*sizes.block_out_channels, 0)[:2]
    height, wide = request.size
    if in_parts:
        height, wide = (min(edge, sizes.sample_size) for edge in request.size)
    return width * (1 if in_parts else request.batch) * height * wide * max(5 * c0, 3 * c1)


def transformer_bytes(transformer: nn.Module, mode: str, width: int) -> int:
    """Estimate the bytes of the frozen weights in a memory mode.

    Biases and norms are never quantised.
    """
    if mode not in BYTES_OF_LINEAR:
        return _stored(transformer, mode, width)
    skipped = DEFAULT_SKIP_MODULES_PATTERN if mode == "fp8" else ()
    small, rest = count_linear(transformer, lambda name: not any(re.search(part, name) for part in skipped))
    unpacked = 0 if mode == "int8" else width * _largest_layer(transformer)
    return int(BYTES_OF_LINEAR[mode] * small) + width * rest + unpacked


def count_linear(network: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> tuple[int, int]:
    """Count frozen parameters: weights of the Linear layers with a chosen name, and all others."""
    linear = {
        id(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and chosen(name)
    }
    weights = sum(p.numel() for p in network.parameters() if id(p) in linear)
    return weights, sum(p.numel() for p in network.parameters() if id(p) not in linear and not p.requires_grad)


def _stored(network: nn.Module, mode: str, width: int) -> int:
    if mode != "group_offload":
        return width * sum(p.numel() for p in network.parameters())
    layers = {id(p) for m in network.modules() if _is_layer(m) for p in m.parameters(recurse=False)}
    others = sum(p.numel() for p in network.parameters() if id(p) not in layers)
    return width * (2 * _largest_layer(network) + others)


def _largest_layer(network: nn.Module) -> int:
    return max(sum(p.numel() for p in m.parameters(recurse=False)) for m in network.modules() if _is_layer(m))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))
