"""Probe a flow model with a noisy image and a text: which image token attends to which text token.

    image --> Base.encode_images --> mean x0 --> x_s = (1 - s) x0 + s e --> Base.velocity(.., tap) --> weights

Regional masks are off: with them the answer would be the masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image
from torch import Tensor

from seg2any.attention.attend import Tap
from seg2any.attention.settings import MOST_TEXT_TOKENS, PLAIN
from seg2any.bases.base import Base, Condition, Grid
from seg2any.bases.text import EncodedText
from seg2any.diffusion.denoise import times
from seg2any.diffusion.flow import interpolate
from seg2any.diffusion.noise import packed_noise
from seg2any.diffusion.prepare import EncodedLayout, as_image, assemble
from seg2any.segment.attention_maps import AttentionMaps
from seg2any.segment.mask_head import Learned, MaskHead, masks_of
from seg2any.segment.phrase_scores import Columns, PhraseScores
from seg2any.system.errors import UserError

STEPS, FROM_THE_END = 28, 8  # the published noise level is that of the eighth last of 28 steps
LONGEST = 128  # tokens of an edge: longer pictures are squashed


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe.

    blocks          numbers of the blocks whose weights are averaged, over double then single blocks
    side            the image is brought to about side x side pixels
    noise_level     s in [0, 1]; None: the published step's, for the number of image tokens
    seeds           of the noise; the weights of all are averaged
    guidance_scale  of the distilled guidance
    text_tokens     length that the prompt is padded to
    """

    blocks: tuple[int, ...]
    side: int
    noise_level: float | None = None
    seeds: tuple[int, ...] = (0,)
    guidance_scale: float = 3.5
    text_tokens: int = MOST_TEXT_TOKENS


@dataclass(frozen=True)
class MaskReader:
    """A CNN that was trained to read masks out of attention, and the probe that feeds it."""

    head: MaskHead
    settings: ProbeSettings


def completed(asked: ProbeSettings, base: Base, learned: Learned | None = None) -> ProbeSettings:
    """Fill in blocks (), side 0 and noise level None by what adapters learned and what is known about the model.

    Its text is cut to the tokens that model and adapters are known to read. Raises UserError if nothing is known.
    """
    known = base.probing
    for name, found in (("blocks", learned or known), ("side", known)):
        if not getattr(asked, name) and found is None:
            raise UserError(
                f"--{name}: nobody has measured this model; give it, `seg2any segment --sweep` measures all blocks"
            )
    read = [known.tokens if known else None, learned.text_tokens if learned else None]
    return replace(
        asked,
        blocks=asked.blocks or tuple((learned or known).blocks),
        side=asked.side or known.side,
        noise_level=learned.noise_level if learned and asked.noise_level is None else asked.noise_level,
        text_tokens=min([asked.text_tokens, *(most for most in read if most)]),
    )


def check_probe(settings: ProbeSettings, base: Base) -> None:
    """Raise UserError for blocks that a model lacks, and for an image smaller than a token."""
    n_blocks, patch = base.geometry.n_blocks, base.geometry.pixels_per_token
    if wrong := [block for block in settings.blocks if not 0 <= block < n_blocks]:
        raise UserError(f"--blocks {wrong[0]}: the model has the blocks 0 to {n_blocks - 1}; choose among them")
    if settings.side < patch:
        raise UserError(f"--side {settings.side}: is smaller than a token of {patch} pixels; give more")


def working_size(size: tuple[int, int], side: int, patch: int) -> tuple[int, int]:
    """Return (H, W) near `size`'s aspect and side x side pixels, in whole tokens, no edge above LONGEST tokens."""
    scale = side / math.sqrt(size[0] * size[1]) / patch
    height, width = (min(LONGEST, max(1, round(edge * scale))) * patch for edge in size)
    return height, width


def published_level(base: Base, scheduler: FlowMatchEulerDiscreteScheduler, n_tokens: int) -> float:
    """Return the noise level of the eighth last of 28 steps: 0.5582 for FLUX.1-dev at 1024 px, 0.5151 for SD3."""
    own = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    if not own.config.use_dynamic_shifting:  # SD3: the same times for every size
        own.set_timesteps(STEPS)
        return float(own.timesteps[-FROM_THE_END]) / 1000
    return float(times(base, own, n_tokens, STEPS, torch.device("cpu"))[-FROM_THE_END]) / 1000


def encode_image(base: Base, image: np.ndarray, side: int) -> tuple[Tensor, Grid]:
    """Encode an image uint8 [H, W, 3]: the posterior's mean [1, I, D], and the token grid (h, w)."""
    patch = base.geometry.pixels_per_token
    height, width = working_size(image.shape[:2], side, patch)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return base.encode_images(as_image(np.asarray(resized))).mean, (height // patch, width // patch)


@torch.no_grad()
def probe(base: Base, x0: Tensor, grid: Grid, text: EncodedText, level: float, settings: ProbeSettings) -> Tensor:
    """Average the image-to-text weights over seeds: float32 [blocks, I, T].

    x0     latents [1, I, D] of the image
    level  noise level s
    """
    found = [read_attention(base, *given, settings) for given in inputs(base, x0, grid, text, level, settings)]
    return torch.stack(found).mean(0)[:, 0]


@torch.no_grad()
def probe_masks(
    base: Base, x0: Tensor, grid: Grid, chunk: tuple[EncodedText, Columns], level: float, reader: MaskReader
) -> Tensor:
    """Average over seeds how sure a trained CNN is of each phrase of a text: float32 [n, h, w], 0 to 1.

    chunk  a text, and the tokens of its phrases
    """
    text, columns = chunk
    found = []
    for x, s, condition in inputs(base, x0, grid, text, level, reader.settings):
        tap = PhraseScores(reader.settings.blocks, [columns])
        run_tapped(base, x, s, condition, reader.settings, tap)
        found.append(masks_of(reader.head, [of_block[0] for of_block in tap.of_blocks()], grid))
    return torch.stack(found).mean(0)


def inputs(
    base: Base, x0: Tensor, grid: Grid, text: EncodedText, level: float, settings: ProbeSettings
) -> Iterator[tuple[Tensor, float, Condition]]:
    """Yield the noisy latents of each seed, the noise level and the condition."""
    check_probe(settings, base)
    plain = PLAIN.override({"max_sequence_length": settings.text_tokens})
    sample = EncodedLayout(text, np.zeros((0, *grid), dtype=bool))
    device = get_module_execution_device(base.network)  # its weights may wait on the CPU
    condition = assemble([sample], plain).to(device, base.dtype)
    for seed in settings.seeds:
        yield noised(x0, grid, level, seed).to(device, base.dtype), level, condition


def read_attention(base: Base, x: Tensor, level: float, condition: Condition, settings: ProbeSettings) -> Tensor:
    """Predict the velocity at x [B, I, D] once and return the weights [blocks, B, I, T].

    Raises UserError for a condition whose masks keep regions apart.
    """
    maps = AttentionMaps(settings.blocks)
    run_tapped(base, x, level, condition, settings, maps)
    return maps.weights()


def run_tapped(base: Base, x: Tensor, level: float, condition: Condition, settings: ProbeSettings, tap: Tap) -> None:
    """Predict the velocity at x [B, I, D] once, for the sake of a tap.

    Raises UserError for a condition whose masks keep regions apart.
    """
    if not condition.settings.is_plain:
        raise UserError(
            f"attention_mask_method {condition.settings.attention_mask_method}: its masks keep regions apart, so the "
            "attention would only repeat them; probe with attention_mask_method none"
        )
    s = torch.full((len(x),), level, device=x.device, dtype=x.dtype)
    base.velocity(x, s, condition, settings.guidance_scale, tap)


def noised(x0: Tensor, grid: Grid, level: float, seed: int) -> Tensor:
    """Mix latents [1, I, D] with the noise of a seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = packed_noise(grid, x0.shape[-1] // 4, generator).to(x0)
    return interpolate(x0, noise, torch.tensor([level]).to(x0))


def comparable(weights: Sequence[Tensor]) -> list[Tensor]:
    """Make the weights [blocks, I, T] of several prompts comparable.

    Each is a softmax over the prompt's tokens and the image's. The image is the same for all prompts, so each weight is
    divided by the sum of the weights for image tokens. The weights of a single prompt stay as they are, as published.
    """
    if len(weights) == 1:
        return list(weights)
    return [one / (1 - one.sum(-1, keepdim=True)).clamp_min(torch.finfo(one.dtype).tiny) for one in weights]
