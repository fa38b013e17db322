"""A base: a flow model with its frozen encoders, as everything above sees it. `velocity` is the only call of a network.

Shape suffixes: B batch, T text tokens, I image tokens, C condition tokens, D numbers per image token, h w token grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from seg2any.attention.attend import AttentionPlan, Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.bases.text import Prompt, TextKey
from seg2any.system.errors import UserError

Grid = tuple[int, int]  # rows and columns of tokens
Encoders = Literal["text", "images"]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a base that prompts, grids and estimates depend on.

    pixels_per_token  edge of the image patch behind one token: 16 for FLUX.1
    channels          D, numbers per image token: 64 for FLUX.1
    n_blocks          attention blocks, numbered from 0
    n_heads, width    of each block
    position_axes     rotary position axes: 3 for FLUX.1
    text_width        numbers per text token; pooled_width: of the pooled vector, 0 without one
    latent_scaling    (shift, scale): latents of the VAE enter the network as (z - shift) * scale
    """

    pixels_per_token: int
    channels: int
    n_blocks: int
    n_heads: int
    width: int
    position_axes: int
    text_width: int
    pooled_width: int
    latent_scaling: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Posterior:
    """The VAE's posterior q(z | x) of images: packed and scaled `mean` and `std`, each [..., I, D].

    Caches hold it instead of a sample, so that every training step draws fresh noise.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return [..., I, D] for standard normal noise of that shape (see `packed_noise`)."""
        return self.mean + self.std * noise.to(self.mean)

    def __getitem__(self, index) -> Posterior:
        return Posterior(self.mean[index], self.std[index])

    def cpu(self) -> Posterior:
        """Return the posterior with its tensors on the CPU."""
        return Posterior(self.mean.cpu(), self.std.cpu())


@dataclass(frozen=True, eq=False)
class ConditionKeys:
    """Keys and values [B, C, heads, d] of the condition tokens, after RoPE, by block number.

    Empty: the next forward pass fills it. Filled: they stand for the condition tokens, which are left out.
    """

    of_block: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks together."""
        return sum(x.untyped_storage().nbytes() for pair in self.of_block.values() for x in pair)


class Attends(Protocol):
    """Computes the attention of a block: `AttentionPlan`, or its share in one of several processes."""

    def attend(self, block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Condition:
    """A batch's captions, token layout, settings and condition tokens; the same object in generation and training.

    text       [B, T, width of text] embeddings [global | region 1 .. N | pad]; pad rows are zero
    pooled     [B, P] one text vector per sample; None for bases without one
    cond       [B, C, D] latents of the condition tokens, or None; pad rows are zero
    cond_keys  computed keys of the condition tokens, see `seg2any.diffusion.cond_cache`
    exchange   attends over the tokens of all processes that make an image together; None: this process has them all

    Frozen, so the masks in `plan` are built once for all the denoising steps that share this object.
    """

    text: Tensor
    pooled: Tensor | None
    tokens: TokenLayout
    settings: ConditionSettings
    cond: Tensor | None = None
    cond_keys: ConditionKeys | None = None
    exchange: Attends | None = None

    def __post_init__(self) -> None:
        n_cond = 0 if self.cond is None else self.cond.shape[1]
        given = (self.text.shape[0], self.text.shape[1], n_cond)
        expected = (self.tokens.batch_size, self.tokens.n_text, self.tokens.n_cond)
        if given != expected:
            raise UserError(f"(batch, text, cond) tokens are {given} but the token layout says {expected}")

    @cached_property
    def plan(self) -> Attends:
        """Who attends to whom in every block, kept for all steps."""
        return self.exchange or AttentionPlan(self.tokens, self.settings)

    @property
    def needs_cond_rows(self) -> bool:
        """Whether a forward pass has condition rows: there are tokens, and their keys are not known yet."""
        return self.cond is not None and not (self.cond_keys and self.cond_keys.of_block)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """Return the condition on a device, its embeddings and latents in a dtype (None = unchanged)."""
        return replace(
            self,
            text=self.text.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            tokens=self.tokens.to(device),
            cond=None if self.cond is None else self.cond.to(device, dtype),
        )


class Base(Protocol):
    """A flow model and its frozen encoders. Nothing above this protocol names a network's parts.

    geometry        see `Geometry`
    adapter_layers  names of the Linear layers of each adapter, `default` and `cond`
    mag_ratios      for the step cache `mag`: by which factor the blocks' contribution shrinks from step to step; None:
                    not measured for this model
    keeps_cond_keys whether `velocity` can fill and use `Condition.cond_keys`
    tokenizer       counts the tokens of a caption, `len(tokenizer(text).input_ids)`
    network         the module that `velocity` runs: to freeze, move, compile, quantise, or give a step cache
    device          where `velocity` computes
    """

    geometry: Geometry
    adapter_layers: Mapping[str, Sequence[str]]
    mag_ratios: Sequence[float] | None
    keeps_cond_keys: bool
    tokenizer: object
    network: nn.Module
    device: torch.device

    def prompt(self, caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> Prompt:
        """Name the embeddings that a global caption, which may be absent, and the regions' captions need.

        Raises UserError for plain settings without a global caption.
        """

    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]:
        """Yield the embedding of each key, on the CPU, in any order.

        Warns with TruncationWarning, once per caption, if tokens are cut.
        """

    def text_state(self, key: TextKey) -> Hashable:
        """Return what an embedding depends on besides its key: encoder, precision, adapters. For caches in memory."""

    def identity(self, of: Encoders) -> Iterator[bytes]:
        """Yield what embeddings or latents depend on: vocabularies and samples of the encoders' weights."""

    def release_text_encoders(self, but_pooled: bool = False) -> None:
        """Free the text encoders, all or all but that of pooled vectors, once caches hold what they would compute."""

    def release_image_encoder(self) -> None:
        """Move the VAE to the CPU, once caches hold what it would encode."""

    def encode_images(self, images: Tensor) -> Posterior:
        """Encode float [B, 3, H, W] in [-1, 1], H and W multiples of `pixels_per_token` -> Posterior [B, I, D]."""

    def decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Decode [B, h*w, D] -> images [B, 3, H, W], about [-1, 1]. Raises UserError for NaN and infinity."""

    def velocity(
        self, x: Tensor, s: Tensor, condition: Condition, guidance: float | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Predict dx/ds at x_s [B, I, D], noise levels s [B] in [0, 1], under a condition -> [B, I, D].

        guidance  the distilled guidance scale; ignored by models without one
        tap       called before the attention of every block, see `seg2any.attention.attend.Tap`
        """
