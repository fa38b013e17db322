"""Estimate the memory of a training step from sizes alone, before 24 GB are loaded.

With P trained parameters in fp32, T tokens of the longest sample (text + image + condition), a batch of B, width d,
rank r, D double and S single blocks, and e bytes per element (2 under bf16 or fp16, else 4):

    frozen weights      e per parameter; Linear weights 1 (8bit) or 0.52 (nf4: 4 bit, and a scale per 64 of them);
                        shard_base shares all by N processes
    gathered blocks     with shard_base, the largest block whole twice: the one at work and the next
    adapters            4 P; under bf16 or fp16 also e P for copies in that precision, of one block at a time with
                        gradient checkpointing
    gradients           4 P
    optimizer           8 P of AdamW, 2 P of its 8-bit form; ZeRO adds a copy of 4 P and shares all by N processes
    average             4 P with ema_decay
    kept activations    e B T (D (22.5 d + 6 r) + S (19.5 d + 6 r)) and what `grouped` copies, see below; with gradient
                        checkpointing e B T d (D + S)
    one block           the largest of them: activations that checkpointing recomputes, and gradients in flight
    attention masks     e B T^2 for each kind of block; of more than 256 MiB each, 256 MiB are built at a time
    encoders            text encoders and VAE at e unless a complete cache replaces them, and one image's pass through
                        the VAE
    reserve             1 GiB: context, workspaces, fragments

22.5 d, 19.5 d and 6 r are what autograd keeps of a block, within 15 %: on CUDA 1 d less or the same, on a CPU 3 d more,
and with B = 1 2 to 3 d less, since rows of one stream need no copy. Blocks that isolate attributes may compute their
attention by `grouped`, which copies every key and value c times: 2 c d more. The layout decides c, so the estimate
takes the most that `auto` allows in training. tests/test_memory.py and tests/test_fake_cuda_step.py count again.
"""

from __future__ import annotations

from dataclasses import dataclass

from accelerate.utils import gather_object
from torch import nn

from seg2any.attention.choice import MOST_COPIES_IN_TRAINING
from seg2any.attention.pattern import mask_bytes
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.data.dataset import ClosedSet, DataSet
from seg2any.generate.memory_estimate import BYTES_OF_LINEAR, RESERVE, count_linear
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.device import total_bytes
from seg2any.training import build
from seg2any.training.config import Config
from seg2any.training.strategy import Strategy

KEPT_BY_DOUBLE, KEPT_BY_SINGLE, KEPT_BY_ADAPTERS = 22.5, 19.5, 6
USED_BESIDE_ENCODERS = 0.9  # of a device at most: a run that would end for want of memory must not keep encoders
BYTES_OF_MOMENTS = {"adamw": 8, "adamw8bit": 2}


def encoders_of(config: Config, pipeline: Seg2AnyPipeline, train: DataSet) -> EncoderSizes:
    """Count the parameters of the encoders that the configured caches leave on the GPU."""
    text, trainer = 0, config.trainer
    if trainer.cache_text != "all":
        *of_pooled, of_captions = map(_size, pipeline.base.text_encoders)
        text += sum(of_pooled)
        if not (isinstance(train, ClosedSet) and trainer.cache_text == "classes"):
            text += of_captions
    return EncoderSizes(text=text, vae=0 if trainer.cache_latents else _size(pipeline.vae))


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True)
class EncoderSizes:
    """Parameters of the frozen networks that stay on the GPU during training.

    0: a cache replaces them.
    """

    text: int = 0
    vae: int = 0


@dataclass(frozen=True)
class Launch:
    """The processes and the precision of a run.

    width      bytes per element of frozen weights and of the network's tensors
    processes  number of processes
    sharded    whether ZeRO shares gradients and optimizer state between them
    """

    width: int = 2
    processes: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, strategy: Strategy) -> Launch:
        """Read a strategy."""
        return cls(strategy.dtype.itemsize, strategy.process.count, strategy.optimizer_is_sharded)


def estimate(
    config: Config, transformer: nn.Module, tokens: int, encoders: EncoderSizes, launch: Launch
) -> dict[str, int]:
    """Estimate bytes on one GPU by use.

    `transformer` has its adapters and may be on the meta device.
    """
    trainer, width = config.trainer, launch.width
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    shares = launch.processes if launch.sharded else 1
    moments = BYTES_OF_MOMENTS[trainer.optimizer] + (4 if launch.sharded else 0)
    sizes = transformer.config
    d = sizes.num_attention_heads * sizes.attention_head_dim
    double, single = sizes.num_layers, sizes.num_single_layers
    blocks = [
        kept_per_token(d, config.model.rank, number < double, most_copies(config.model.condition, number))
        for number in range(double + single)
    ]
    kept, copied = sum(blocks), trained
    if trainer.gradient_checkpointing:
        kept, copied = len(blocks) * d, _most_trained(transformer)
    elements = width * trainer.train_batch_size * tokens
    pass_of_vae = 4 * width * 128 * config.resolution**2 if encoders.vae else 0  # 4 maps of 128 channels
    frozen = frozen_bytes(transformer, trainer.base_quantization, width)
    in_parts = trainer.shard_base and launch.processes > 1
    n_masks = 2 if config.model.condition.attention_mask_method == "hard" else 1
    return {
        "frozen weights": frozen // launch.processes if in_parts else frozen,
        "gathered blocks": 2 * _largest_block(transformer) * width if in_parts else 0,
        "adapters": 4 * trained + (width * copied if width < 4 else 0),
        "gradients": 4 * trained // shares,
        "optimizer": moments * trained // shares,
        "average": 4 * trained if trainer.ema_decay else 0,
        "kept activations": int(elements * kept),
        "one block": int(elements * max(blocks)),
        "attention masks": mask_bytes(n_masks, (trainer.train_batch_size, tokens, tokens), width),
        "encoders": width * (encoders.text + encoders.vae) + pass_of_vae,
        "reserve": RESERVE,
    }


def predicted_bytes(
    config: Config, pipeline: Seg2AnyPipeline, tokens: int, strategy: Strategy, encodes_images: bool
) -> int:
    """Estimate the peak of a process, in bytes, with the text encoders that it has now.

    pipeline        of the run, with adapters
    tokens          of the longest sample
    encodes_images  whether the VAE is on the device during training
    """
    text = sum(map(_size, pipeline.base.text_encoders))
    encoders = EncoderSizes(text=text, vae=_size(pipeline.vae) if encodes_images else 0)
    whole = config.trainer.base_quantization == "none"  # quantised weights are packed, so their numbers do not count
    transformer = pipeline.transformer if whole else build.weightless(config).transformer
    return sum(estimate(config, transformer, tokens, encoders, Launch.of(strategy)).values())


def has_room_for_encoders(config: Config, pipeline: Seg2AnyPipeline, tokens: int, strategy: Strategy) -> bool:
    """Tell whether the device of every process holds the encoders beside the training.

    All processes ask at the same time and get the same answer. It depends on the machine, not on what else is running
    there, so a run gets it again when it resumes. Takes the arguments of `predicted_bytes`.
    """
    needed = predicted_bytes(config, pipeline, tokens, strategy, encodes_images=True)
    if strategy.device.type != "cuda":  # the processes of a machine share its memory
        needed *= strategy.process.local_count
    total = total_bytes(strategy.device)
    return all(gather_object([total is not None and needed <= total * USED_BESIDE_ENCODERS]))


def kept_per_token(d: int, rank: int, is_double: bool, copies: float = 0.0) -> float:
    """Count the numbers that autograd keeps of a block per token.

    d       width
    copies  times that `grouped` attention copies a key and its value, on average
    """
    return ((KEPT_BY_DOUBLE if is_double else KEPT_BY_SINGLE) + 2 * copies) * d + KEPT_BY_ADAPTERS * rank


def most_copies(settings: ConditionSettings, block: int) -> int:
    """Return how often `auto` lets `grouped` copy the keys of a block in training; 0: it is not used there."""
    is_grouped = settings.attention_of(block) is Attention.AIA and settings.attention_backend in ("auto", "grouped")
    return MOST_COPIES_IN_TRAINING if is_grouped else 0


def frozen_bytes(transformer: nn.Module, quantization: str, width: int) -> int:
    """Estimate bytes of the frozen weights; biases and norms are never quantised."""
    linear, other = count_linear(transformer)
    return int(linear * BYTES_OF_LINEAR.get(build.MODES[quantization], width)) + other * width


def _largest_block(transformer: nn.Module) -> int:
    """Count the frozen parameters of the block with the most."""
    return max(sum(p.numel() for p in block.parameters() if not p.requires_grad) for block in transformer.blocks)


def _most_trained(transformer: nn.Module) -> int:
    """Count the trained parameters of the block with the most."""
    return max(sum(p.numel() for p in block.parameters() if p.requires_grad) for block in transformer.blocks)
