"""How much GPU memory a training step takes, from sizes alone: the answer to "will it fit" before 24 GB are loaded.

With P trained parameters in fp32, T tokens of the longest sample (text + image + condition), a batch of B, width d,
rank r, D double and S single blocks, and e bytes per element (2 under bf16 or fp16, else 4):

    frozen weights      e per parameter; Linear weights 1 (8bit) or 0.52 (nf4: 4 bit, and a scale per 64 of them);
                        shard_base shares all by N processes
    gathered blocks     with shard_base, the largest block whole twice: the one at work and the next
    adapters            4 P, and e P for the copies that autocast computes with
    gradients           4 P
    optimizer           8 P of AdamW, 2 P of its 8-bit form; ZeRO adds a copy of 4 P and shares all by N processes
    average             4 P with ema_decay
    kept activations    e B T (D (23 d + 6 r) + S (20 d + 6 r)), with gradient checkpointing e B T d (D + S)
    one block           e B T (23 d + 6 r): what checkpointing computes again, and the gradients of what is at work
    attention masks     e B T min(T, 512): of so many queries at a time; attention itself is taken to keep no matrix
    encoders            what no cache replaces: T5, CLIP and VAE at e, and one image's pass through the VAE
    reserve             1 GiB: context, workspaces, fragments

23 d, 20 d and 6 r are counted: what autograd keeps of a block on a CPU (tests/test_memory.py counts again).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from seg2any.attention.pattern import QUERIES_AT_A_TIME
from seg2any.generate.memory_estimate import BYTES_OF_LINEAR, GIB, RESERVE, count_linear
from seg2any.training.config import Config
from seg2any.training.quantize import MODES

KEPT_BY_DOUBLE, KEPT_BY_SINGLE, KEPT_BY_ADAPTERS = 23, 20, 6
BYTES_OF_MOMENTS = {"adamw": 8, "adamw8bit": 2}


@dataclass(frozen=True)
class Encoders:
    """Parameters of the frozen networks that stay on the GPU during training; 0: a cache replaces them."""

    text: int = 0
    vae: int = 0


@dataclass(frozen=True)
class Launch:
    """How a run is spread: `sharded` by ZeRO over `processes`, `width` bytes per element of what autocast lowers."""

    width: int = 2
    processes: int = 1
    sharded: bool = False


def estimate(config: Config, transformer: nn.Module, tokens: int, encoders: Encoders, launch: Launch) -> dict[str, int]:
    """Bytes on one GPU by what takes them. `transformer` has its adapters, and may be on the meta device."""
    trainer, width = config.trainer, launch.width
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    shares = launch.processes if launch.sharded else 1
    moments = BYTES_OF_MOMENTS[trainer.optimizer] + (4 if launch.sharded else 0)
    sizes = transformer.config
    d = sizes.num_attention_heads * sizes.attention_head_dim
    double, single = sizes.num_layers, sizes.num_single_layers
    low_rank = KEPT_BY_ADAPTERS * config.model.rank
    one_block = KEPT_BY_DOUBLE * d + low_rank
    kept = double * one_block + single * (KEPT_BY_SINGLE * d + low_rank)
    if trainer.gradient_checkpointing:
        kept = (double + single) * d
    elements = width * trainer.train_batch_size * tokens
    pass_of_vae = 4 * width * 128 * config.resolution**2 if encoders.vae else 0  # 4 maps of 128 channels
    frozen = frozen_bytes(transformer, trainer.base_quantization, width)
    in_parts = trainer.shard_base and launch.processes > 1
    return {
        "frozen weights": frozen // launch.processes if in_parts else frozen,
        "gathered blocks": 2 * _largest_block(transformer) * width if in_parts else 0,
        "adapters": (4 + (width if width < 4 else 0)) * trained,
        "gradients": 4 * trained // shares,
        "optimizer": moments * trained // shares,
        "average": 4 * trained if trainer.ema_decay else 0,
        "kept activations": elements * kept,
        "one block": elements * one_block,
        "attention masks": elements * min(tokens, QUERIES_AT_A_TIME),
        "encoders": width * (encoders.text + encoders.vae) + pass_of_vae,
        "reserve": RESERVE,
    }


def frozen_bytes(transformer: nn.Module, quantization: str, width: int) -> int:
    """Weights that are not trained; biases and norms are never quantised."""
    linear, other = count_linear(transformer)
    return int(linear * BYTES_OF_LINEAR.get(MODES.get(quantization), width)) + other * width


def _largest_block(transformer: nn.Module) -> int:
    """Its number of frozen parameters."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    return max(sum(p.numel() for p in block.parameters() if not p.requires_grad) for block in blocks)


def table(rows: dict[str, int]) -> list[str]:
    """Lines for people, in GiB."""
    lines = [f"  {name:<17}{size / GIB:7.2f} GiB" for name, size in rows.items() if size]
    total = sum(rows.values()) / GIB
    return [
        "GPU memory per process, estimated (seg2any/training/memory.py):",
        *lines,
        f"  {'together':<17}{total:7.2f} GiB",
    ]
