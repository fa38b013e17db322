"""Blocks of FLUX.1-dev's width and inputs of a step, on the CUDA tensors without numbers of `tests.fake_cuda`."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from benchmarks.gpu.measure import Run
from benchmarks.gpu.model import POOLED_WIDTH, TEXT_WIDTH, Inputs, small_flux
from seg2any.adapters.fold import mark_folded
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from tests.fake_trace import Trace


def stock_flux() -> FluxTransformer2DModel:
    """Create the blocks of `flux_model` as diffusers has them, without adapters, on "cuda"."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            **{"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True},
            **{"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": POOLED_WIDTH},
        )
    return _moved(model.to(torch.bfloat16))


def flux_model(trained: bool = False, folded: bool = False) -> Seg2AnyTransformer2DModel:
    """Create one double and two single blocks of FLUX.1-dev's width with adapters of rank 64, on "cuda".

    trained  keep the adapters trainable, in fp32, with gradient checkpointing
    folded   mark the adapter `default` as folded into the base weights
    """
    model = _moved(small_flux(Run.of("flux", "meta"), n_double=1, n_single=2, trained=trained))
    if folded:
        mark_folded(model, 1.0)
    return model


def _moved(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            moved = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
            module._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
    return model


def flux_inputs(tokens: TokenLayout, settings: ConditionSettings, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Draw the inputs of a step on "cuda" for tokens on the CPU, where the attention plan is made."""
    return Inputs.random(Run.of("flux", "cuda"), tokens, settings, dtype)


def step(model: Seg2AnyTransformer2DModel, inputs: Inputs) -> Trace:
    """Trace the second step of an image without gradients; `first` of the result is the trace of the first step.

    The first step also makes and sends what the attention plan keeps.
    """
    with torch.no_grad():
        with Trace(model) as first:
            inputs.predict(model)
        with Trace(model) as trace:
            inputs.predict(model)
    trace.first = first
    return trace
