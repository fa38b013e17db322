"""Estimated memory of inference against measured peaks and FLUX.1-dev's sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.scenes import SampleTokens
from examples.shapes.make import build
from seg2any.adapters.fold import fold
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.text import text_bytes
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.diffusion.cond_cache import with_keys
from seg2any.diffusion.prepare import encode_layouts
from seg2any.generate import memory
from seg2any.generate.memory_estimate import (
    Networks,
    Request,
    activation_bytes,
    decoder_bytes,
    predict,
    transformer_bytes,
)
from seg2any.generate.memory_modes import MEMORY_MODES
from tests import tiny_flux
from tests.tiny_pipeline import FAST, HARD, THREE, fresh_pipe, images_of
from tests.tracked_memory import TrackedMemory

BAR = 0.15
FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
}
ONE_IMAGE = Request((1024, 1024), 1, 4096 + 262 + 1024, 20 * 50, 512)


CASES = [  # heads, condition tokens, batch, method, cond_attention, folded
    (8, 100, 1, "hard", "bidirectional", False),
    (16, 0, 2, "base", "bidirectional", False),
    (16, 400, 2, "hard", "isolated", False),
    (8, 100, 2, "hard", "bidirectional", False),
    (16, 300, 3, "base", "bidirectional", True),
]


def near(measured: float):
    return pytest.approx(measured, rel=BAR)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(("heads", "n_cond", "batch", "method", "cond_attention", "folded"), CASES)
def test_estimate_of_a_transformer_pass(width, heads, n_cond, batch, method, cond_attention, folded, monkeypatch):
    monkeypatch.setattr(tiny_flux, "GRID", (20, 24))
    dtype = {2: torch.bfloat16, 4: torch.float32}[width]
    sizes = {"attention_head_dim": 32, "num_attention_heads": heads, "axes_dims_rope": (8, 12, 12)}
    # As after loading, the adapters require gradients: torch's matmul then copies the rows.
    model = tiny_flux.adapted(**sizes).to(dtype)
    if folded:
        fold(model)
    rng = np.random.default_rng(0)
    masks, positions = rng.random((2, 20, 24)) < 0.4, rng.integers(0, 3, (n_cond, 2)) if n_cond else None
    # `auto` may take kernels without masks, as the processor reports; the estimate counts the masks in any case.
    rules = ConditionSettings(method, (1, 2), cond_attention=cond_attention, attention_backend="sdpa")
    n_kept = n_cond if cond_attention == "isolated" else 0
    given = tiny_flux.condition([SampleTokens((20, 10, 10), masks, positions)] * batch, rules).to("cpu", dtype)
    inputs = {name: x.to(dtype) for name, x in tiny_flux.inputs(batch).items()}
    with torch.no_grad(), TrackedMemory() as tracked:
        tiny_flux.run(model, with_keys(tiny_flux.base_of(model), given, 1.0) if n_kept else given, **inputs)
    request = dataclasses.replace(ONE_IMAGE, batch=batch, n_tokens=480 + 40 + n_cond, n_kept=n_kept)
    n_masks = 2 if method == "hard" else 1
    predicted = activation_bytes(model.config, batch, request.n_tokens, width, n_kept=n_kept, n_masks=n_masks)
    assert predicted == near(tracked.peak)


@pytest.mark.parametrize(("size", "ff", "batch", "length"), [(64, 256, 4, 64), (128, 256, 8, 32), (64, 512, 1, 128)])
def test_estimate_of_a_t5_pass(size, ff, batch, length):
    sizes = T5Config(
        vocab_size=50, d_model=size, d_ff=ff, num_heads=4, d_kv=16, num_layers=2, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(sizes).eval()
    with torch.no_grad(), TrackedMemory() as tracked:
        encoder(torch.zeros(batch, length, dtype=torch.long))
    request = dataclasses.replace(ONE_IMAGE, n_captions=batch * length, caption_length=length)
    assert text_bytes(sizes, request.n_captions, request.caption_length, 4) == near(tracked.peak)


@pytest.mark.parametrize("channels", [(8, 8, 16, 16), (8, 16, 32, 32)])
@pytest.mark.parametrize(("size", "in_parts"), [((96, 128), False), ((64, 64), True), ((160, 64), True)])
def test_estimate_of_decoding(channels, size, in_parts):
    sizes = {**build.build_vae().config, "block_out_channels": channels, "norm_num_groups": 8, "sample_size": 64}
    vae = AutoencoderKL.from_config(sizes).eval()
    if in_parts:
        vae.enable_slicing()
        vae.enable_tiling()
    latents = torch.zeros(2, vae.config.latent_channels, size[0] // 8, size[1] // 8)
    with torch.no_grad(), TrackedMemory() as tracked:
        vae.decode(latents)
    request = dataclasses.replace(ONE_IMAGE, size=size, batch=2)
    images = 4 * 2 * 3 * size[0] * size[1]  # negligible beside the feature maps at FLUX's sizes only
    extra = images if in_parts else 0
    assert decoder_bytes(vae.config, request, 4, in_parts) + extra == near(tracked.peak)


def flux_networks() -> Networks:
    """Create FLUX.1-dev's networks without numbers, and count adapters of rank 64."""
    with torch.device("meta"):
        transformer = Seg2AnyTransformer2DModel(guidance_embeds=True).requires_grad_(False)
        vae = AutoencoderKL(**FLUX_VAE)
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, num_heads=64, d_kv=64, num_layers=24, feed_forward_proj="gated-gelu")
        )
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return Networks(transformer, (clip, t5), vae, 343_670_784 + 250_482_688)


def test_estimate_of_flux_in_every_mode():
    """Compare with sums by hand, in GB.

    The transformer has 23.80 in bf16, T5 9.52, CLIP 0.25, the VAE 0.17, and adapters of rank 64 1.19.
    """
    networks = flux_networks()
    gigabytes = {mode: max(predict(networks, ONE_IMAGE, mode, 2).values()) / 1e9 for mode in MEMORY_MODES}
    assert gigabytes["full"] == pytest.approx(23.80 + 9.52 + 0.25 + 0.17 + 1.19 + 1.61, abs=0.2)  # decoding
    block = 2 * (5382 * 3072 * 17.2 + 2 * 5382 * 5384) / 1e9  # and two masks
    assert gigabytes["offload"] == pytest.approx(23.80 + 1.19 + block, abs=0.1)
    assert gigabytes["int8"] == pytest.approx(11.90 + 1.19 + block, abs=0.3)
    assert gigabytes["nf4"] == pytest.approx(9.52, abs=0.3)  # T5
    assert gigabytes["group_offload"] < gigabytes["nf4"] < gigabytes["int8"] < gigabytes["fp8"] < 24
    assert gigabytes["offload"] > 24


def test_estimate_of_a_whole_image(stock_pipe):
    """Compare the largest stage with the weights plus the measured activation memory."""
    pipe = fresh_pipe(stock_pipe)
    masks = THREE.masks.repeat(4, axis=1).repeat(4, axis=2)
    layout = dataclasses.replace(THREE, masks=masks)
    run = {**FAST, **HARD, "output_type": "pt"}
    images_of(pipe, layout, **run)  # caches that only the first call fills
    with TrackedMemory() as tracked:
        images_of(pipe, layout, **run)
    networks = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
    weights = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    (encoded,) = encode_layouts([layout], layout.size, pipe.base, ConditionSettings())
    request = Request(layout.size, 1, encoded.n_tokens, 3 * 12, 24)
    stages = predict(Networks(pipe.transformer, networks[1:3], pipe.vae), request, "full", 4)
    assert max(stages.values()) == near(weights + tracked.peak)
    assert max(stages.values()) - weights == near(tracked.peak)


def test_estimate_of_fp8_weights(stock_pipe):
    pipe = fresh_pipe(stock_pipe)
    transformer = pipe.transformer.requires_grad_(False)
    predicted = transformer_bytes(transformer, "fp8", 4)
    memory.place(pipe, "fp8", torch.device("cpu"))
    largest = max(4 * m.weight.numel() for m in transformer.modules() if isinstance(m, nn.Linear))
    assert predicted == near(sum(p.numel() * p.element_size() for p in transformer.parameters()) + largest)
    others = (pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
    stored = sum(p.numel() * p.element_size() for part in others for p in part.parameters())
    decoding = predict(Networks(transformer, others[:2], pipe.vae), ONE_IMAGE, "fp8", 4, "cpu")["decoding"]
    activations = decoder_bytes(pipe.vae.config, ONE_IMAGE, 4, in_parts=True)
    assert decoding - activations == near(predicted + stored), "on a CPU nothing is sent away"
