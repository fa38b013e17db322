"""Define `Base`, a flow model with frozen encoders, and `Condition`, its input.

All other code calls the network by `Base.velocity`.

Shape suffixes: B batch, T text tokens, I image tokens, C condition tokens, D numbers per image token, h w token grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from seg2any.attention.attend import AttentionPlan, Tap
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.bases.text import CaptionKeys, TextKey
from seg2any.system.errors import UserError

Grid = tuple[int, int]  # rows and columns of tokens
Encoders = Literal["text", "images"]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a base. Token grids, memory estimates and padding depend on them.

    pixels_per_token  edge in pixels of the square image patch that one token stands for: 16 for FLUX.1
    channels          D, numbers per image token: 64 for FLUX.1
    n_blocks          attention blocks, numbered from 0
    n_heads, width    attention heads of a block, and numbers per token inside the block
    position_axes     rotary position axes: 3 for FLUX.1
    text_width        numbers per text token
    pooled_width      numbers in the pooled text vector; 0 if the base takes none
    latent_scaling    constants that scale the VAE's latents, () if its weights hold them; FLUX.1: (shift, scale), a
                      latent z enters the network as (z - shift) * scale
    """

    pixels_per_token: int
    channels: int
    n_blocks: int
    n_heads: int
    width: int
    position_axes: int
    text_width: int
    pooled_width: int
    latent_scaling: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior q(z | x) of a VAE: packed and scaled `mean` and `std`, each [..., I, D].

    Caches hold the posterior instead of a sample, so that every training step draws fresh noise.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Sample latents [..., I, D] with standard normal noise of that shape."""
        return self.mean + self.std * noise.to(self.mean)

    def __getitem__(self, index) -> Posterior:
        return Posterior(self.mean[index], self.std[index])

    def cpu(self) -> Posterior:
        """Copy the posterior to the CPU."""
        return Posterior(self.mean.cpu(), self.std.cpu())


@dataclass(frozen=True, eq=False)
class ConditionKeys:
    """Keys and values [B, C, heads, d] of the condition tokens, after RoPE, by block number.

    The first forward pass that is given an empty object fills it. Later passes use the stored keys and values and
    compute no condition rows.
    """

    of_block: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Return the bytes that the keys and values of all blocks take."""
        return sum(x.untyped_storage().nbytes() for pair in self.of_block.values() for x in pair)


class Attends(Protocol):
    """An object that computes the attention of a block, such as `AttentionPlan`."""

    def attend(self, block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in block number `block`: [B, L, heads, d] each -> [B, L, heads, d]."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of a batch: text, token layout, settings and condition tokens.

    Generation and training build the same object.

    text       [B, T, text_width] embeddings [global | region 1 .. N | pad]; pad rows are zero
    pooled     [B, P] one text vector per sample; None for bases without one
    cond       [B, C, D] latents of the condition tokens, or None; pad rows are zero
    cond_keys  keys and values of the condition tokens, to fill or to use; None computes them in every pass
    exchange   computes attention across the processes that share an image; None: this process has all tokens

    The object is frozen, so `plan` builds its masks once for all denoising steps.

    Raises UserError if the numbers of tokens differ from the token layout's.
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
            raise UserError(f"condition: (batch, text, cond) tokens are {given}, but the token layout says {expected}")

    @cached_property
    def plan(self) -> Attends:
        """Return the attention of all blocks; its masks are kept for all steps."""
        return self.exchange or AttentionPlan(self.tokens, self.settings)

    @cached_property
    def positions(self) -> Tensor:
        """Return the RoPE positions of all tokens, float32 [B, L, 3], on the device of the text."""
        return self.tokens.positions.to(self.text.device)

    @property
    def needs_cond_rows(self) -> bool:
        """Tell whether a forward pass must compute rows for the condition tokens."""
        return self.cond is not None and not (self.cond_keys and self.cond_keys.of_block)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """Move embeddings and latents to a device and convert them to `dtype` (None keeps it).

        The tokens stay on the CPU, where `plan` is made.
        """
        return replace(
            self,
            text=self.text.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            cond=None if self.cond is None else self.cond.to(device, dtype),
        )


@dataclass(frozen=True)
class Probing:
    """Where a model's attention follows regions best.

    blocks   numbers of the blocks, over double then single blocks
    side     edge in pixels of the square images that it knows best
    tokens   the most text tokens that its encoder reads, of which an empty text's maps are taken; None: no such limit
    parting  numbers of the blocks whose self-attention parts instances best; (): nobody has measured it
    """

    blocks: tuple[int, ...]
    side: int
    tokens: int | None = None
    parting: tuple[int, ...] = ()


class Base(Protocol):
    """A flow model and its frozen encoders; other rooms call its network by `velocity` only.

    geometry        sizes of the model
    adapter_layers  names of the Linear layers of each adapter, `default` and `cond`
    mag_ratios      for the step cache `mag`: the factor by which the blocks' contribution shrinks in each step; None:
                    nobody has measured this model
    probing         where its attention follows regions best; None: nobody has measured this model
    keeps_cond_keys whether `velocity` can fill and use `Condition.cond_keys`
    tokenizer       counts the tokens of a caption: `len(tokenizer(text).input_ids)`
    text_encoders   networks that read captions; the last one reads every caption, others give the pooled vector
    network         the module that `velocity` runs; `network.blocks` are its attention blocks in order. Callers freeze,
                    move, compile or quantise it, or give it a step cache
    device, dtype   of `velocity`: callers move and convert what they give it
    """

    geometry: Geometry
    adapter_layers: Mapping[str, Sequence[str]]
    mag_ratios: Sequence[float] | None
    probing: Probing | None
    keeps_cond_keys: bool
    tokenizer: object
    text_encoders: Sequence[nn.Module]
    network: nn.Module
    device: torch.device
    dtype: torch.dtype

    def caption_keys(self, caption: str | None, regions: Sequence[str], settings: ConditionSettings) -> CaptionKeys:
        """Name the embeddings that a sample needs: of its global caption, if any, and its regions.

        Raises UserError for plain settings without a global caption.
        """

    def encode_text(self, keys: Sequence[TextKey]) -> Iterator[tuple[TextKey, Tensor]]:
        """Yield the embedding of each key, on the CPU, in any order.

        Warns with TruncationWarning, once per caption, if the encoder cuts tokens, and with UnknownWordsWarning if its
        tokenizer does not know some.
        """

    def text_state(self, key: TextKey) -> Hashable:
        """Return what an embedding depends on besides its key: encoder, precision, adapters.

        Caches in memory add it to the key.
        """

    def identity(self, of: Encoders) -> Iterator[bytes]:
        """Yield bytes that identify the encoders: vocabularies and samples of their weights.

        Caches on disk are valid for these bytes only.
        """

    def release_text_encoders(self, but_pooled: bool = False) -> None:
        """Free the text encoders once caches hold every embedding.

        but_pooled  keep the encoder of the pooled vector
        """

    def release_image_encoder(self) -> None:
        """Move the VAE to the CPU once caches hold every latent."""

    def encode_images(self, images: Tensor) -> Posterior:
        """Encode images, float [B, 3, H, W] in [-1, 1] -> Posterior [B, I, D].

        H and W are multiples of `geometry.pixels_per_token`.
        """

    def decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Decode tokens [B, h*w, D] -> images [B, 3, H, W], about in [-1, 1].

        Raises UserError if an image contains NaN or infinity.
        """

    def decode_with_gradients(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Decode as `decode` does; gradients reach the tokens, and NaN and infinity come through."""

    def time_shift(self, schedule: Mapping[str, Any], n_tokens: int, n_steps: int) -> float:
        """Return mu, by which the schedule shifts the times of n_steps steps for n_tokens tokens.

        schedule  the scheduler's configuration
        """

    def velocity(
        self, x: Tensor, s: Tensor, condition: Condition, guidance: float | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Predict dx/ds [B, I, D] at x_s [B, I, D] and noise levels s [B] in [0, 1].

        guidance  scale of the distilled guidance; models without one ignore it
        tap       called before the attention of every block, see `seg2any.attention.attend.Tap`
        """
