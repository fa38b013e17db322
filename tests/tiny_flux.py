"""A FLUX transformer of a few thousand weights, and random conditions for it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig

from benchmarks.scenes import SampleTokens
from seg2any.adapters.files import add_adapters
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import layout_tokens
from seg2any.bases.base import Condition
from seg2any.bases.flux1.base import Flux1, velocity
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel

CONFIG = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
GRID = (4, 3)
RULES = ConditionSettings("hard", (1, 2))
STYLE = ["to_q", "to_v", "proj_mlp", "ff.net.2", "x_embedder", "norm_out.linear"]


def tiny(cls: type = Seg2AnyTransformer2DModel, seed: int = 0, **config) -> torch.nn.Module:
    """Build a small transformer with the same weights for every class.

    The weights are large enough for every part of the input to change the output.
    """
    torch.manual_seed(seed)
    model = cls(**{**CONFIG, **config}).eval()
    for parameter in model.parameters():
        parameter.data *= 2 if parameter.ndim == 2 else 1
    return model


def randomize_adapters(model: torch.nn.Module, seed: int = 1) -> None:
    """Draw random adapter weights; new adapters are zero and would change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1


def adapted(rank: int = 3, alpha: float = 6, **config) -> torch.nn.Module:
    """Build a tiny model with both adapters, with random weights."""
    model = tiny(**config)
    add_adapters(model, rank, alpha)
    randomize_adapters(model)
    return model


def add_style(model: torch.nn.Module, weight: float = 1.0) -> None:
    """Add a third adapter beside `default` and `cond`, as a user would."""
    torch.manual_seed(8)
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=STYLE, init_lora_weights=False), "style")
    model.set_adapters(["default", "cond", "style"], [1.0, 1.0, weight])


def sample(seed: int, n_entities: int = 2, n_cond: int | None = 3) -> SampleTokens:
    rng = np.random.default_rng(seed)
    lengths = tuple(int(length) for length in rng.integers(1, 4, n_entities + 1))
    masks = rng.random((n_entities, *GRID)) < 0.4
    return SampleTokens(lengths, masks, None if n_cond is None else rng.integers(0, 3, (n_cond, 2)))


def condition(samples: list[SampleTokens], rules: ConditionSettings = RULES) -> Condition:
    """Build a condition for a batch.

    Embeddings depend on the sample and the token only, so they are the same alone and in a batch.
    """
    tokens = layout_tokens(samples)
    text = torch.zeros(len(samples), tokens.n_text, CONFIG["joint_attention_dim"])
    cond = torch.zeros(len(samples), tokens.n_cond, CONFIG["in_channels"])
    for b, one in enumerate(samples):
        generator = torch.Generator().manual_seed(sum(one.text_lengths))
        n_text, n_cond = sum(one.text_lengths), 0 if one.cond_positions is None else len(one.cond_positions)
        text[b, :n_text] = torch.randn(n_text, text.shape[-1], generator=generator)
        cond[b, :n_cond] = torch.randn(n_cond, cond.shape[-1], generator=generator)
    pooled = torch.ones(len(samples), CONFIG["pooled_projection_dim"])
    return Condition(text, pooled, tokens, rules, cond if tokens.n_cond else None)


def inputs(batch: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Return image tokens, equal in every sample, and a time and guidance.

    Both times 1000 are exact in 16 bit.
    """
    image = torch.randn(1, GRID[0] * GRID[1], CONFIG["in_channels"], generator=torch.Generator().manual_seed(seed))
    return {
        "hidden_states": image.expand(batch, -1, -1),
        "timestep": torch.full((batch,), 0.25),
        "guidance": torch.full((batch,), 1.0),
    }


def plain_inputs(batch: int = 2, n_text: int = 5) -> dict[str, torch.Tensor]:
    """Return the arguments of stock FLUX."""
    generator = torch.Generator().manual_seed(3)
    rows, cols = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    return inputs(batch) | {
        "encoder_hidden_states": torch.randn(batch, n_text, CONFIG["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(batch, CONFIG["pooled_projection_dim"], generator=generator),
        "txt_ids": torch.zeros(n_text, 3),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, cols], -1).flatten(0, 1).float(),
    }


def base_of(model: torch.nn.Module) -> Flux1:
    """Build a base that has a transformer and no other network."""
    return Flux1(SimpleNamespace(transformer=model))


def run(model: torch.nn.Module, given: Condition | None = None, **changed) -> torch.Tensor:
    """Return the model's prediction, with a condition or without one."""
    if given is None:
        return model(**(plain_inputs() | changed), return_dict=False)[0]
    told = inputs(given.tokens.batch_size) | changed
    return velocity(model, told["hidden_states"], told["timestep"], given, float(told["guidance"][0]), told.get("tap"))
