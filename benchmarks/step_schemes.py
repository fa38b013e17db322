"""Define the schemes that `benchmarks.step` compares, all on one set of weights.

plain      stock FLUX.1 of diffusers: the same image tokens, 512 padded text tokens, no adapter; the lower bound
kernel     plain FLUX with our attention kernel: separates what the kernel saves from what the method saves
limit      `benchmarks/machine_limit.py`: the products of the blocks and the attention of our tokens, without a mask
published  `benchmarks/published_scheme.py`: a dense float mask, both adapters on all tokens, one pass per stream
routed     our model with the adapters as loaded: each adapter computes only its own tokens
folded     our model after `fold()`: `default` is part of the weights, condition tokens add the difference to `cond`
isolated   folded, and condition tokens attend only to each other: one pass before the first step computes their keys
           and values, and all steps reuse them. It needs adapters trained for it: its output differs from the others'
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.machine_limit import machine_limit
from benchmarks.published_scheme import published_scheme
from benchmarks.scenes import CAPTION_TOKENS, PATCH, SampleTokens, scene
from seg2any.adapters.files import add_adapters
from seg2any.adapters.fold import fold
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import layout_tokens
from seg2any.bases.base import Base, Condition
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.diffusion.cond_cache import with_keys

PLAIN_TEXT_TOKENS = 512
GUIDANCE = 3.5
PLAIN, KERNEL, LIMIT, PUBLISHED, ROUTED, FOLDED, ISOLATED = SCHEMES = (
    *("plain", "kernel", "limit", "published", "routed", "folded", "isolated"),
)


@dataclass(frozen=True)
class Size:
    """The size of a transformer.

    rank      rank of the adapters: a 48th of the width, as published
    head_dim  numbers per attention head
    """

    n_double: int
    n_single: int
    n_heads: int
    rank: int
    head_dim: int = 128

    @property
    def aia_blocks(self) -> tuple[int, int]:
        """Return first and last block with attribute isolation: half of the single blocks."""
        return self.n_double, self.n_double + self.n_single // 2 - 1

    def config(self) -> dict[str, object]:
        """Return the configuration of FLUX.1-dev with this depth and width."""
        return {
            "num_layers": self.n_double,
            "num_single_layers": self.n_single,
            "num_attention_heads": self.n_heads,
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": tuple(self.head_dim * part // 16 for part in (2, 7, 7)),
            "guidance_embeds": True,
        }


SIZES = {
    "cpu": Size(2, 4, 12, 32),
    "narrow": Size(2, 4, 8, 16, head_dim=64),
    "flux-dev": Size(19, 38, 24, 64),
    "tiny": Size(1, 2, 2, 4),
}


@dataclass(frozen=True)
class Case:
    """A batch of images of side x side pixels with n_entities regions each.

    text_tokens  number of text tokens of the image's caption, and of each region's
    n_ellipses   number of ellipses that make up the regions; None: one per region
    """

    side: int
    n_entities: int
    batch_size: int = 1
    text_tokens: tuple[int, int] = CAPTION_TOKENS
    n_ellipses: int | None = None

    @property
    def n_image(self) -> int:
        """Return the number of image tokens of one image."""
        return (self.side // PATCH) ** 2


@dataclass(frozen=True, eq=False)
class Models:
    """Three transformers with equal random weights; `stock` and `ours` share memory."""

    size: Size
    stock: FluxTransformer2DModel
    ours: Seg2AnyTransformer2DModel
    folded: Seg2AnyTransformer2DModel

    @classmethod
    def random(cls, size: Size, device: torch.device, dtype: torch.dtype) -> Models:
        """Create random weights on the device, with seed 0, and both adapters."""
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # in float32 the weights of FLUX.1-dev would take 48 GB
        try:
            with torch.device(device):
                stock = FluxTransformer2DModel(**size.config())
            with torch.device("meta"):
                ours = Seg2AnyTransformer2DModel(**size.config())
        finally:
            torch.set_default_dtype(default)
        ours.load_state_dict(stock.state_dict(), assign=True)
        add_adapters(ours, size.rank)
        for name, parameter in ours.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, dtype=dtype, device=device) * 0.02
        folded = copy.deepcopy(ours)
        fold(folded)
        return cls(size, stock.eval(), ours.eval(), folded.eval())


@dataclass(frozen=True)
class Scheme:
    """One way to make the images of a case.

    prepare  computes from the masks what all steps share, without the encoders: a Condition, or token ids for `plain`
    step     (result of `prepare`, latents [B, I, C], noise level in [0, 1]) -> velocity [B, I, C]
    context  holds while `prepare` and `step` run
    """

    name: str
    prepare: Callable[[], object]
    step: Callable[[object, torch.Tensor, float], torch.Tensor]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def image(self, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Make latents [B, I, C] of whole images: prepare, then take `n_steps` Euler steps."""
        with self.context():
            prepared, latents = self.prepare(), noise
            for step in range(n_steps):
                latents = latents - self.step(prepared, latents, 1 - step / n_steps) / n_steps
        return latents


@dataclass(frozen=True, eq=False)
class Given:
    """Random inputs of a case; all schemes get the same."""

    models: Models
    case: Case
    device: torch.device
    dtype: torch.dtype

    def tensor(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Draw standard normal numbers on the device; equal shapes and seeds give equal numbers."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def latents(self) -> torch.Tensor:
        """Draw the noise [B, I, C] that denoising starts from."""
        return self.tensor(self.case.batch_size, self.case.n_image, self.models.stock.config.in_channels)

    def shared(self, time: float) -> dict[str, object]:
        """Build the arguments of stock FLUX that do not depend on tokens."""
        batch, width = self.case.batch_size, self.models.stock.config.pooled_projection_dim
        return {
            "timestep": torch.full((batch,), time, device=self.device, dtype=self.dtype),
            "guidance": torch.full((batch,), GUIDANCE, device=self.device),
            "pooled_projections": self.tensor(batch, width, seed=1),
            "return_dict": False,
        }

    def condition(self, cond_attention: str = "bidirectional") -> Condition:
        """Build the condition of the case from its masks; embeddings and latents are random."""
        settings = ConditionSettings(
            "hard",
            self.models.size.aia_blocks,
            cond_attention=cond_attention,
            cond_scale_factor=1 if self.case.side <= 512 else 2,
        )
        case = self.case
        tokens = scene(case.side, case.n_entities, settings, case.text_tokens, case.batch_size, case.n_ellipses)
        config = self.models.stock.config
        return Condition(
            self.tensor(case.batch_size, tokens.n_text, config.joint_attention_dim, seed=2),
            self.tensor(case.batch_size, config.pooled_projection_dim, seed=1),
            tokens,
            settings,
            self.tensor(case.batch_size, tokens.n_cond, config.in_channels, seed=3),
        )

    def plain_condition(self) -> Condition:
        """Build the condition of plain FLUX: 512 text tokens, no regions, no masks."""
        config, side = self.models.stock.config, self.case.side // PATCH
        sample = SampleTokens((PLAIN_TEXT_TOKENS,), np.zeros((0, side, side), bool))
        return Condition(
            self.tensor(self.case.batch_size, PLAIN_TEXT_TOKENS, config.joint_attention_dim, seed=2),
            self.tensor(self.case.batch_size, config.pooled_projection_dim, seed=1),
            layout_tokens([sample] * self.case.batch_size),
            ConditionSettings("none"),
        )


def schemes_of(given: Given, names: Sequence[str] = SCHEMES) -> list[Scheme]:
    """List the named schemes for a case, in the order of SCHEMES."""
    models, ours, folded = given.models, base_of(given.models.ours), base_of(given.models.folded)
    schemes = [
        Scheme(PLAIN, lambda: token_ids(given), lambda ids, x, t: plain_step(given, ids, x, t)),
        Scheme(KERNEL, given.plain_condition, regional_step(folded)),
        Scheme(LIMIT, given.condition, LimitStep(models.size)),
        Scheme(PUBLISHED, given.condition, regional_step(ours), published_scheme),
        Scheme(ROUTED, given.condition, regional_step(ours)),
        Scheme(FOLDED, given.condition, regional_step(folded)),
        Scheme(ISOLATED, lambda: isolated(folded, given), regional_step(folded)),
    ]
    return [scheme for scheme in schemes if scheme.name in names]


class LimitStep:
    """A step of `limit`: it computes what `machine_limit` does, and returns the latents."""

    def __init__(self, size: Size):
        self.size, self.compute = size, None

    def __call__(self, condition: Condition, latents: torch.Tensor, time: float) -> torch.Tensor:
        if self.compute is None:
            size, tokens = self.size, condition.tokens
            rows = tokens.n_text, tokens.kind.shape[1] - tokens.n_text
            self.compute = machine_limit(size.n_double, size.n_single, size.n_heads, size.head_dim, rows, latents)
        self.compute()
        return latents


def tokens_of_step(prepared: object, case: Case) -> int:
    """Count the tokens of an image that pass the blocks in a step.

    prepared  result of a scheme's `prepare`
    """
    if not isinstance(prepared, Condition):
        return prepared[0].shape[1] + case.n_image
    return prepared.tokens.kind.shape[1] - (prepared.tokens.n_cond if prepared.cond_keys else 0)


def base_of(transformer: Seg2AnyTransformer2DModel) -> Base:
    """Wrap a transformer as a `Base` without encoders, which only predicts velocities."""
    return Flux1(SimpleNamespace(transformer=transformer))


def isolated(base: Base, given: Given) -> Condition:
    """Build the condition of the case, and compute keys and values of its contour tokens."""
    return with_keys(base, given.condition(cond_attention="isolated"), GUIDANCE)


def regional_step(base: Base) -> Callable[[Condition, torch.Tensor, float], torch.Tensor]:
    """Return a base's step: (condition, latents [B, I, C], noise level) -> velocity [B, I, C]."""

    def step(condition: Condition, latents: torch.Tensor, time: float) -> torch.Tensor:
        return base.velocity(latents, latents.new_full([len(latents)], time), condition, GUIDANCE)

    return step


def token_ids(given: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Build text embeddings [B, 512, D], text ids [512, 3] and image ids [I, 3] for stock FLUX."""
    side, embedding = given.case.side // PATCH, given.models.stock.config.joint_attention_dim
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side)).float()
    text = given.tensor(given.case.batch_size, PLAIN_TEXT_TOKENS, embedding, seed=2)
    return text, torch.zeros(PLAIN_TEXT_TOKENS, 3, device=given.device), grid.to(given.device)


def plain_step(
    given: Given, ids: tuple[torch.Tensor, torch.Tensor, torch.Tensor], latents: torch.Tensor, time: float
) -> torch.Tensor:
    """Predict the velocity [B, I, C] with stock FLUX of diffusers, which is not a `Base`."""
    text, text_ids, image_ids = ids
    return given.models.stock(
        hidden_states=latents, encoder_hidden_states=text, txt_ids=text_ids, img_ids=image_ids, **given.shared(time)
    )[0]
