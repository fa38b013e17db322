"""Steps of FLUX.1-dev's size on CUDA tensors without numbers: launches, bytes, precision and memory.

No step mixes devices or waits for the GPU: the stand-in would raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks.gpu.measure import Run, random_layout
from benchmarks.gpu.model import CHANNELS, GUIDANCE, POOLED_WIDTH, TEXT_WIDTH, base_of
from benchmarks.scenes import scene
from seg2any.attention.attend import attend
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.bases.base import Condition
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.generate.memory_estimate import activation_bytes
from seg2any.training.memory import kept_per_token
from seg2any.training.tasks.flow_matching import Velocity
from tests.fake_cuda import FakeCuda
from tests.fake_flux import flux_inputs, flux_model, step, stock_flux
from tests.fake_trace import Trace

COPIES = 19  # FLUX.1-dev has 19 double blocks and 38 single ones; half of these isolate attributes
SETTINGS = ConditionSettings("hard", (1, 1), cond_scale_factor=2)  # block 0 is double, 1 isolates attributes
WITHIN = 0.15
WIDTH, RANK = 3072, 64


class Case(NamedTuple):
    """What a step runs: "routed" or "folded" adapters, or the "trained" forward pass of training."""

    adapters: str
    side: int
    regions: int
    batch: int


# Launches of a whole step, and GB that its kernels read and write. A change may lower them, and then records them here.
RECORDED = {
    Case("routed", 512, 8, 1): (3588, 76.3),
    Case("routed", 512, 20, 2): (3626, 154.0),
    Case("routed", 1024, 8, 1): (3588, 241.3),
    Case("routed", 1024, 8, 4): (3626, 897.3),
    Case("routed", 1024, 20, 1): (3588, 267.2),
    Case("folded", 512, 8, 1): (2752, 66.1),
    Case("folded", 1024, 8, 1): (2752, 205.4),
    Case("folded", 1024, 20, 4): (2790, 869.8),
    Case("trained", 512, 20, 2): (5757, 162.5),
    Case("trained", 1024, 8, 1): (5719, 252.3),
    Case("trained", 1024, 8, 4): (5757, 930.4),
}
PLAIN_LAUNCHES = 2673  # of a step of diffusers' FLUX.1-dev at 512 px; an RMS norm is one launch
MOST_TIMES_PLAIN = 1.5
GENERATED = [case for case in RECORDED if case.adapters != "trained"]
TRAINED = [case for case in RECORDED if case.adapters == "trained"]

Traced = Callable[[Case], tuple[Trace, TokenLayout]]


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    """Trace a case's step, once for all tests."""
    with FakeCuda():

        @cache
        def model_of(adapters: str) -> Seg2AnyTransformer2DModel:
            model = flux_model(trained=adapters == "trained", folded=adapters == "folded")
            if adapters != "trained":  # the first step of all stacks adapters, which stay for all images
                step(model, flux_inputs(scene(256, 2, SETTINGS), SETTINGS))
            return model

        @cache
        def trace(case: Case) -> tuple[Trace, TokenLayout]:
            rng, on = np.random.default_rng(0), Run.of("flux", "cpu")
            tokens, _ = random_layout(on, rng, case.regions, case.batch, SETTINGS, case.side)
            run = training_pass if case.adapters == "trained" else step
            return run(model_of(case.adapters), flux_inputs(tokens, SETTINGS)), tokens

        yield trace


def training_pass(model, inputs) -> Trace:
    """Trace the forward pass of training without checkpoints, and what it keeps."""
    model.disable_gradient_checkpointing()
    velocity = Velocity(base_of(model), GUIDANCE)
    with mock.patch.object(Condition, "to", lambda self, *_: self):  # so that both passes share a plan
        velocity(inputs.x, inputs.s, inputs.condition)
        with Trace(model) as trace:
            trace.output = velocity(inputs.x, inputs.s, inputs.condition)
    trace.trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in model.blocks]
    return trace


def of_flux(one_block: Callable[[int | None], float]) -> float:
    """Scale a number of the three blocks, and of what is outside them, to FLUX.1-dev's 57 blocks."""
    return one_block(None) + COPIES * sum(one_block(block) for block in range(3))


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_launches_and_bytes_of_a_step_are_at_most_the_recorded_ones(traced, case):
    trace, _ = traced(case)
    launches, gigabytes = RECORDED[case]
    assert of_flux(trace.launches) <= launches
    assert of_flux(trace.n_bytes) / 1e9 <= gigabytes


def test_launches_of_plain_flux(traced):
    n_text, n_image = 512, 1024
    with torch.no_grad():
        model = stock_flux()
        given = {
            "hidden_states": torch.zeros(1, n_image, CHANNELS, device="cuda", dtype=torch.bfloat16),
            "encoder_hidden_states": torch.zeros(1, n_text, TEXT_WIDTH, device="cuda", dtype=torch.bfloat16),
            "pooled_projections": torch.zeros(1, POOLED_WIDTH, device="cuda", dtype=torch.bfloat16),
            "timestep": torch.zeros(1, device="cuda", dtype=torch.bfloat16),
            "guidance": torch.zeros(1, device="cuda"),
            "img_ids": torch.zeros(n_image, 3, device="cuda"),
            "txt_ids": torch.zeros(n_text, 3, device="cuda"),
        }
        with Trace(model) as trace:
            model(**given)
    assert of_flux(trace.launches) == PLAIN_LAUNCHES


@pytest.mark.parametrize("case", GENERATED, ids=str)
def test_a_step_launches_at_most_half_as_many_kernels_again_as_plain_flux(traced, case):
    trace, _ = traced(case)
    assert of_flux(trace.launches) <= MOST_TIMES_PLAIN * PLAIN_LAUNCHES


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_training_and_generation_compute_in_16_bit(traced, case):
    trace, _ = traced(case)
    assert not trace.in_fp32() and {call.dtype for call in trace.calls} == {torch.bfloat16}


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_the_memory_estimate_of_training_holds(traced, case):
    """A block keeps adapters in bf16, too, and `grouped` the keys and values of each of its calls."""
    trace, tokens = traced(case)
    for block, kept in trace.kept.items():
        grouped = [call for call in trace.calls if call.block == block and call.kernel == "flash"]
        copies = sum(call.key[0] * call.key[2] for call in grouped) / tokens.kind.numel()
        estimated = kept_per_token(WIDTH, RANK, block == 0, copies) * tokens.kind.numel() + trace.trained[block]
        assert kept == pytest.approx(2 * estimated, rel=WITHIN), f"block {block}"


@pytest.mark.parametrize("case", GENERATED, ids=str)
def test_the_memory_estimate_of_generation_holds(traced, case):
    trace, tokens = traced(case)
    length = tokens.kind.shape[1]
    sizes = {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 1, "num_single_layers": 2}
    estimated = activation_bytes(sizes, case.batch, length, 2)
    assert trace.first.peak == pytest.approx(estimated, rel=WITHIN)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_blocks_with_a_plan_leave_cudnn_out_and_masked_ones_are_one_call(traced, case):
    """cuDNN's attention makes a plan for every new shape; plain FLUX, whose shape never changes, may use it."""
    trace, _ = traced(case)
    assert not any(call.cudnn for call in trace.calls)
    assert [sum(call.block == block for call in trace.calls) for block in (0, 2)] == [1, 1]
    with torch.no_grad(), Trace() as plain:
        attend(*torch.zeros(3, 1, 4096, 24, 128, device="cuda", dtype=torch.bfloat16))
    assert [call.cudnn for call in plain.calls] == [True]
