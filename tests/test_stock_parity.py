"""Compare RoPE and the whole model with stock diffusers bit for bit, with every kind of CPU kernels torch has here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb

from seg2any.bases.flux1.blocks import rotate
from tests.tiny_flux import plain_inputs, tiny

ROOT = Path(__file__).parents[1]
HEADS = [(4, 8), (3, 8), (2, 16), (1, 24), (4, 48), (2, 64), (2, 128)]  # number and dimension
HEADS_OF_MODELS = [(4, 8), (2, 16), (1, 64), (1, 128)]
THREADS = (1, 2, 3, 5)


def axes(dim: int) -> tuple[int, int, int]:
    """Share the dimension of a head between the three axes of positions."""
    first = max(2, dim // 8 // 2 * 2)
    second = (dim - first) // 4 * 2
    return first, second, dim - first - second


def differing_rotations() -> list[tuple]:
    """List dtype, heads and number of threads of all inputs that stock diffusers rotates otherwise."""
    found, n_threads = [], torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for heads, dim in HEADS:
            generator = torch.Generator().manual_seed(dim)
            length = 2**17 // (heads * dim) + 3  # enough numbers for torch to use several threads
            x = torch.randn(2, length, heads, dim, generator=generator).to(dtype)
            angle = torch.randn(length, dim // 2, generator=generator, dtype=torch.float64) * 9
            cos, sin = (x.repeat_interleave(2, 1).float() for x in (angle.cos(), angle.sin()))
            rotation = torch.stack([cos[:, ::2], sin[:, ::2]], -1)[None, :, None]
            for threads in THREADS:
                torch.set_num_threads(threads)
                if not torch.equal(rotate(x, rotation), apply_rotary_emb(x, (cos, sin), sequence_dim=1)):
                    found.append((str(dtype), heads, dim, threads))
    torch.set_num_threads(n_threads)
    return found


def differing_models() -> list[tuple]:
    """List dtype and heads of all models that predict otherwise than the stock class."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = {name: x if "ids" in name else x.to(dtype) for name, x in plain_inputs().items()}
        for heads, dim in HEADS_OF_MODELS:
            sizes = {"num_attention_heads": heads, "attention_head_dim": dim, "axes_dims_rope": axes(dim)}
            stock, ours = tiny(FluxTransformer2DModel, **sizes).to(dtype), tiny(**sizes).to(dtype)
            with torch.no_grad():
                if not torch.equal(stock(**inputs).sample, ours(**inputs).sample):
                    found.append((str(dtype), heads, dim))
    return found


@pytest.mark.same_numbers("without a layout's condition: ours and stock diffusers | equal")
def test_rope_and_model_are_bit_for_bit_the_stock_ones():
    assert differing_rotations() == []
    assert differing_models() == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.long)])
def test_rope_and_model_are_bit_for_bit_the_stock_ones_with_other_kernels(capability):
    code = (
        "import torch; from tests.test_stock_parity import differing_models, differing_rotations;"
        "print(torch.backends.cpu.get_cpu_capability().lower(), differing_rotations() + differing_models())"
    )
    told = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": "AVX2" if capability == "avx2" else "SSE41"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | told, capture_output=True, text=True, check=True
    )
    used, found = done.stdout.split(maxsplit=1)
    assert found.strip() == "[]"
    assert used == capability
