"""Measure training steps with random weights under the memory presets of config/.

Random numbers stand in for cached embeddings and latents, so T5, CLIP and VAE are not loaded and nothing is downloaded.
A step trains on one sample of 1024 px with 8 regions and contours at 512 px: noise, forward, backward, clipping, AdamW.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.clock import in_turn
from benchmarks.published_scheme import published_scheme
from benchmarks.step_schemes import SIZES, Case, Given, Models, Size, base_of
from seg2any.adapters.files import add_adapters, trainable_parameters
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.diffusion import flow
from seg2any.generate.memory_estimate import GIB
from seg2any.system.errors import UserError
from seg2any.training import config as configs
from seg2any.training.build import apply_memory_options
from seg2any.training.config import Config
from seg2any.training.memory import EncoderSizes, Launch, estimate
from seg2any.training.optimizer import make_optimizer
from seg2any.training.tasks.flow_matching import Velocity

CONFIGS = Path(__file__).parents[1] / "config"
SIDES = {"flux-dev": 1024, "tiny": 128}
N_REGIONS = 8


@dataclass(frozen=True)
class Row:
    """A row of the table: a memory preset, computed by the published scheme or by ours."""

    name: str
    preset: str
    published: bool = False

    def config(self, size: Size, side: int) -> Config:
        """Load the config of SACap-1M, then the preset, then the adapter rank and the resolution."""
        files = [str(CONFIGS / "seg2any_sacap_1m.yaml"), str(CONFIGS / f"{self.preset}.yaml")]
        return configs.load([*files, f"--model.rank={size.rank}", f"--resolution={side}"])


ROWS = (
    Row("published, bf16", "memory_48gb", published=True),
    Row("ours, bf16", "memory_48gb"),
    Row("ours, nf4", "memory_24gb"),
)


def measure(name: str, rounds: int, device: str | None = None) -> list[dict[str, object]]:
    """Measure all rows, one model in memory at a time.

    Raises UserError for the size of FLUX.1-dev without CUDA.
    """
    if name == "flux-dev" and not torch.cuda.is_available():
        raise UserError("--size flux-dev: no CUDA device was found; use a GPU with 60 GB, or leave --size out")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return [measure_row(row, SIZES[name], SIDES[name], rounds, where) for row in ROWS]


def measure_row(row: Row, size: Size, side: int, rounds: int, device: torch.device) -> dict[str, object]:
    """Measure samples per second of one row, and its memory in GiB: the peak and the estimate."""
    config = row.config(size, side)
    transformer = random_transformer(size, config, device)
    given = Given(Models(size, *[transformer] * 3), Case(side, N_REGIONS), device, torch.float32)
    step = training_step(transformer, config, given)
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with as_published(device) if row.published else contextlib.nullcontext():
        (seconds,) = in_turn({row.name: step}, rounds, device).values()
    tokens = given.condition().tokens.kind.shape[1]
    expected = estimate(config, transformer, tokens, EncoderSizes(), Launch())
    return {
        "row": row.name,
        "preset": row.preset,
        "tokens": tokens,
        "samples_per_s": 1 / statistics.median(seconds),
        "peak_gib": torch.cuda.max_memory_allocated(device) / GIB if is_cuda else None,
        "estimated_gib": sum(expected.values()) / GIB,
    }


@contextlib.contextmanager
def as_published(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Train as the published code does, with fp32 adapters under accelerate's autocast to `dtype`."""
    with published_scheme(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def random_transformer(
    size: Size, config: Config, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Seg2AnyTransformer2DModel:
    """Create a frozen transformer in `dtype` or nf4 on the device, with both adapters in fp32."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # in float32 the weights of FLUX.1-dev would take 48 GB
    try:
        with torch.device(device):
            transformer = Seg2AnyTransformer2DModel(**size.config()).requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    if config.trainer.base_quantization == "nf4":
        quantise(transformer, device)
    add_adapters(transformer, size.rank, size.rank)
    trainable_parameters(transformer)
    apply_memory_options(transformer, config)
    return transformer.train()


def quantise(module: nn.Module, device: torch.device) -> None:
    """Convert every Linear to nf4 in place, as diffusers does when it loads a model."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            quantise(child, device)
            continue
        layer = Linear4bit(
            child.in_features, child.out_features, child.bias is not None, torch.bfloat16, quant_type="nf4"
        )
        layer.weight = Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        layer.bias = child.bias
        setattr(module, name, layer.to(device))


def training_step(transformer: nn.Module, config: Config, given: Given) -> Callable[[], None]:
    """Return a training step like the trainer's on a cached sample."""
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, parameters, 1)
    velocity = Velocity(base_of(transformer), config.trainer.guidance_scale)
    x0, noise = given.latents(), given.tensor(*given.latents().shape, seed=4)
    s = torch.full((len(x0),), 0.5, device=x0.device)

    def step() -> None:
        prediction = velocity(flow.interpolate(x0, noise, s), s, given.condition())
        flow.loss(prediction, flow.velocity(x0, noise), torch.ones_like(s)).backward()
        nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def table(rows: list[dict[str, object]]) -> str:
    """Format samples per second and memory of every row."""
    lines = [f"{'scheme':<18}{'tokens':>7}{'samples/s':>11}{'peak GiB':>10}{'estimated':>11}"]
    for row in rows:
        peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        rate, expected = row["samples_per_s"], row["estimated_gib"]
        lines.append(f"{row['row']:<18}{row['tokens']:>7}{rate:>11.3f}{peak:>10}{expected:>11.1f}")
    return "\n".join(lines)
