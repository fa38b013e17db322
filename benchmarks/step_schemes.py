"""The ways to make an image that `benchmarks.step` compares, all on one set of weights.

plain      stock FLUX.1 of diffusers: the same image tokens, its 512 padded text tokens, no adapter; the floor
kernel     plain FLUX with our attention kernel: how much of our lead is that kernel's and how much what we leave out
published  `benchmarks/published_scheme.py`: a dense float mask, both adapters on all tokens, a pass for each stream
routed     ours as adapters are loaded: each on its own tokens
folded     ours after `fold()`: one adapter in the weights, its difference to the other on the condition's tokens
isolated   folded, and the condition sees only itself: a pass before the first step, keys and values after it. Adapters
           have to be trained for that, so it is another function than the three above
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.published_scheme import published_scheme
from benchmarks.scenes import CAPTION_TOKENS, PATCH, SampleTokens, scene
from seg2any.adapters.files import add_adapters
from seg2any.adapters.fold import fold
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import layout_tokens
from seg2any.bases.base import Condition
from seg2any.bases.flux1.base import Flux1, velocity
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.diffusion.cond_cache import with_keys

PLAIN_TEXT_TOKENS = 512
GUIDANCE = 3.5
FOLDED, ISOLATED = "folded", "isolated"


@dataclass(frozen=True)
class Size:
    """A transformer to measure. `aia_blocks` are, as in FLUX.1-dev, the first half of its single blocks."""

    n_double: int
    n_single: int
    n_heads: int
    rank: int  # of the adapters: a 48th of the width, as published

    @property
    def aia_blocks(self) -> tuple[int, int]:
        """First and last of the blocks that isolate attributes."""
        return self.n_double, self.n_double + self.n_single // 2 - 1

    def config(self) -> dict[str, object]:
        """FLUX.1-dev's but for depth and width."""
        return {
            "num_layers": self.n_double,
            "num_single_layers": self.n_single,
            "num_attention_heads": self.n_heads,
            "attention_head_dim": 128,
            "guidance_embeds": True,
        }


SIZES = {"cpu": Size(2, 4, 12, 32), "flux-dev": Size(19, 38, 24, 64), "tiny": Size(1, 2, 2, 4)}


@dataclass(frozen=True)
class Case:
    """What is to be made: images of side x side pixels with n_entities regions, `batch_size` at a time.

    text_tokens  of the image's caption, and of each region's
    n_ellipses   figures that the regions consist of; None: one for each
    """

    side: int
    n_entities: int
    batch_size: int = 1
    text_tokens: tuple[int, int] = CAPTION_TOKENS
    n_ellipses: int | None = None

    @property
    def n_image(self) -> int:
        """Image tokens of an image."""
        return (self.side // PATCH) ** 2


@dataclass(frozen=True, eq=False)
class Models:
    """Transformers of one set of random weights: stock FLUX and ours in the same memory, ours folded in its own."""

    size: Size
    stock: FluxTransformer2DModel
    ours: Seg2AnyTransformer2DModel
    folded: Seg2AnyTransformer2DModel

    @classmethod
    def random(cls, size: Size, device: torch.device, dtype: torch.dtype) -> Models:
        """Weights of seed 0, made on the device, with both adapters."""
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # never the float32 weights of FLUX.1-dev, 48 GB
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
    """How one scheme makes the images of a case.

    prepare  from masks to what all steps share, encoders excepted; FLUX's own token ids for `plain`
    step     (what `prepare` gave, latents, time from 1 to 0) -> velocity, both [B, tokens, channels]
    """

    name: str
    prepare: Callable[[], object]
    step: Callable[[object, torch.Tensor, float], torch.Tensor]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def image(self, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """From masks to the latents of an image: what is prepared, and `n_steps` Euler steps."""
        with self.context():
            prepared, latents = self.prepare(), noise
            for step in range(n_steps):
                latents = latents - self.step(prepared, latents, 1 - step / n_steps) / n_steps
        return latents


@dataclass(frozen=True, eq=False)
class Given:
    """Random inputs of a case, the same for every scheme."""

    models: Models
    case: Case
    device: torch.device
    dtype: torch.dtype

    def tensor(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Standard normal, on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def latents(self) -> torch.Tensor:
        """Noise [B, I, C] to be denoised."""
        return self.tensor(self.case.batch_size, self.case.n_image, self.models.stock.config.in_channels)

    def shared(self, time: float) -> dict[str, object]:
        """Arguments of a step that do not depend on the scheme."""
        batch, width = self.case.batch_size, self.models.stock.config.pooled_projection_dim
        return {
            "timestep": torch.full((batch,), time, device=self.device, dtype=self.dtype),
            "guidance": torch.full((batch,), GUIDANCE, device=self.device),
            "pooled_projections": self.tensor(batch, width, seed=1),
            "return_dict": False,
        }

    def condition(self, cond_attention: str = "bidirectional") -> Condition:
        """All from masks to condition but the encoders."""
        settings = ConditionSettings(
            "hard",
            self.models.size.aia_blocks,
            cond_attention=cond_attention,
            cond_scale_factor=1 if self.case.side <= 512 else 2,
        )
        case = self.case
        tokens = scene(case.side, case.n_entities, settings, case.text_tokens, case.batch_size, case.n_ellipses)
        tokens = tokens.to(self.device)
        config = self.models.stock.config
        return Condition(
            self.tensor(case.batch_size, tokens.n_text, config.joint_attention_dim, seed=2),
            self.tensor(case.batch_size, config.pooled_projection_dim, seed=1),
            tokens,
            settings,
            self.tensor(case.batch_size, tokens.n_cond, config.in_channels, seed=3),
        )

    def plain_condition(self) -> Condition:
        """The tokens of plain FLUX, all of which see each other."""
        config, side = self.models.stock.config, self.case.side // PATCH
        sample = SampleTokens((PLAIN_TEXT_TOKENS,), np.zeros((0, side, side), bool))
        return Condition(
            self.tensor(self.case.batch_size, PLAIN_TEXT_TOKENS, config.joint_attention_dim, seed=2),
            self.tensor(self.case.batch_size, config.pooled_projection_dim, seed=1),
            layout_tokens([sample] * self.case.batch_size).to(self.device),
            ConditionSettings("none"),
        )


def schemes_of(given: Given) -> list[Scheme]:
    """All that are compared, the floor first."""
    models = given.models
    published = functools.partial(published_scheme, models.size.n_heads)
    return [
        Scheme("plain", lambda: token_ids(given), lambda ids, x, t: plain_step(given, ids, x, t)),
        Scheme("kernel", given.plain_condition, regional_step(given, models.folded)),
        Scheme("published", given.condition, regional_step(given, models.ours), published),
        Scheme("routed", given.condition, regional_step(given, models.ours)),
        Scheme(FOLDED, given.condition, regional_step(given, models.folded)),
        Scheme(ISOLATED, functools.partial(isolated, given), regional_step(given, models.folded)),
    ]


def tokens_of_step(prepared: object, case: Case) -> int:
    """How many tokens of an image pass the blocks in a step, from what a scheme has prepared."""
    if not isinstance(prepared, Condition):
        return prepared[0].shape[1] + case.n_image
    return prepared.tokens.kind.shape[1] - (prepared.tokens.n_cond if prepared.cond_keys else 0)


def isolated(given: Given) -> Condition:
    """A condition whose contour tokens are computed already, before the first step."""
    return with_keys(
        Flux1(SimpleNamespace(transformer=given.models.folded)), given.condition(cond_attention="isolated"), GUIDANCE
    )


def regional_step(
    given: Given, model: Seg2AnyTransformer2DModel
) -> Callable[[Condition, torch.Tensor, float], torch.Tensor]:
    """A step of a model of ours: condition, latents [B, I, C], time -> prediction [B, I, C]."""

    def step(condition: Condition, latents: torch.Tensor, time: float) -> torch.Tensor:
        return velocity(model, latents, latents.new_full([len(latents)], time), condition, GUIDANCE)

    return step


def token_ids(given: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text embeddings [B, 512, D], text ids [512, 3] and image ids [tokens, 3] of stock FLUX."""
    side, embedding = given.case.side // PATCH, given.models.stock.config.joint_attention_dim
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side)).float()
    text = given.tensor(given.case.batch_size, PLAIN_TEXT_TOKENS, embedding, seed=2)
    return text, torch.zeros(PLAIN_TEXT_TOKENS, 3, device=given.device), grid.to(given.device)


def plain_step(
    given: Given, ids: tuple[torch.Tensor, torch.Tensor, torch.Tensor], latents: torch.Tensor, time: float
) -> torch.Tensor:
    """A step of stock FLUX: latents [B, I, C] -> prediction [B, I, C]."""
    text, text_ids, image_ids = ids
    return given.models.stock(
        hidden_states=latents, encoder_hidden_states=text, txt_ids=text_ids, img_ids=image_ids, **given.shared(time)
    )[0]
