"""Check step caches on our blocks, and compiled blocks over changing layouts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from seg2any import Layout, Seg2AnyPipeline
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.base import MAG_RATIOS
from seg2any.diffusion import step_cache
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.system.errors import UserError
from tests import tiny_flux
from tests.tiny_pipeline import HARD, MANY, ONE, THREE, images_of

pytestmark = pytest.mark.slow

SIX_STEPS = {"num_inference_steps": 6, "output_type": "latent", "max_sequence_length": 24}
STEERED = {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0}
SIZES = (2, 3, 32)  # of the test model: blocks and width
# Configurations that never skip, and others that skip whatever they can: all but `computed` of six steps.
NEVER = {
    "first_block": FirstBlockCacheConfig(threshold=0.0),
    "mag": MagCacheConfig(threshold=0.0, num_inference_steps=6, mag_ratios=[0.9] * 6),
    "taylorseer": TaylorSeerCacheConfig(cache_interval=1, taylor_factors_dtype=torch.float32),
}
ALWAYS = {
    "first_block": (FirstBlockCacheConfig(threshold=1e9), 1),
    "mag": (MagCacheConfig(threshold=1e9, num_inference_steps=6, mag_ratios=[1.0] * 6, max_skip_steps=9), 1),
    "taylorseer": (TaylorSeerCacheConfig(cache_interval=9, taylor_factors_dtype=torch.float32), 4),
}


def latents(pipe: Seg2AnyPipeline, layouts: Layout | list[Layout], **arguments) -> torch.Tensor:
    return images_of(pipe, layouts, **{**SIX_STEPS, **HARD, **arguments})


@pytest.fixture
def attended(pipe) -> Iterator[list[int]]:
    """Yield a list with one entry per step that computed the attention of the second block."""
    calls = []
    layer = pipe.transformer.transformer_blocks[1].attn.to_q.base_layer
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.mark.same_numbers("a step cache that never skips, and none | equal")
@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("more", [{}, STEERED, {**STEERED, "cfg_in_one_pass": True}], ids=["", "cfg", "one pass"])
def test_a_cache_that_never_skips_changes_nothing(pipe, name, more):
    assert torch.equal(latents(pipe, MANY, step_cache=NEVER[name], **more), latents(pipe, MANY, **more))
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("name", ALWAYS)
def test_a_cache_that_skips_computes_less_and_starts_afresh_for_every_call(pipe, name, attended):
    config, computed = ALWAYS[name]
    first = latents(pipe, THREE, step_cache=config)
    assert len(attended) == computed
    latents(pipe, ONE, step_cache=config)  # other numbers of tokens
    assert torch.equal(latents(pipe, THREE, step_cache=config), first)
    assert len(attended) == 3 * computed
    attended.clear()
    plain = latents(pipe, THREE)
    assert len(attended) == 6 and not torch.equal(plain, first)


@pytest.mark.parametrize("name", [name for name in STEP_CACHES if name != "none"])
def test_caches_by_name(pipe, name, monkeypatch):
    monkeypatch.setitem(MAG_RATIOS, SIZES, (1.0, 0.99, 0.98))
    found = latents(pipe, MANY, step_cache=name)
    assert torch.isfinite(found).all()
    expected = latents(pipe, MANY)
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_ratios_of_fewer_and_more_steps_shrink_as_much_over_the_same_stretch():
    ratios = np.linspace(1.0, 0.9, 20)
    assert step_cache.stretched(ratios, 20) == pytest.approx(ratios)
    for n_steps in (2, 4, 10):
        steps = 20 // n_steps
        expected = [ratios[0], *(ratios[i + 1 : i + 1 + steps].prod() for i in range(0, 20 - steps, steps))]
        assert step_cache.stretched(ratios, n_steps) == pytest.approx(expected)
    finer = step_cache.stretched(ratios, 40)
    assert np.prod(finer[:39]) == pytest.approx(ratios.prod())
    assert step_cache.stretched(ratios, 1) == pytest.approx([1.0])


def test_mag_skips_no_step_of_a_run_whose_steps_differ_much(pipe, monkeypatch, attended):
    """With a ratio of 0.96 in each of 20 steps, the second of two steps is not skipped."""
    monkeypatch.setitem(MAG_RATIOS, SIZES, (1.0,) + (0.96,) * 19)
    assert torch.equal(
        latents(pipe, ONE, step_cache="mag", num_inference_steps=2), latents(pipe, ONE, num_inference_steps=2)
    )
    assert len(attended) == 4
    attended.clear()
    latents(pipe, ONE, step_cache="mag", num_inference_steps=20)
    assert len(attended) < 20


def test_what_cannot_be_is_refused_in_one_line(pipe):
    for name, named in {"fast": "^step_cache: 'fast'", "mag": "^step_cache mag: "}.items():
        with pytest.raises(UserError, match=named):
            latents(pipe, ONE, step_cache=name)
    pipe.transformer.enable_cache(NEVER["first_block"])
    try:
        with pytest.raises(UserError, match="^step_cache: .*disable_cache"):
            latents(pipe, ONE, step_cache="taylorseer")
    finally:
        pipe.transformer.disable_cache()


def test_a_cache_left_over_from_an_interrupted_call_is_forgotten(pipe):
    def stop(*_):
        raise KeyboardInterrupt

    expected = latents(pipe, ONE)
    pipe.transformer.enable_cache(ALWAYS["first_block"][0])
    try:
        with pytest.raises(KeyboardInterrupt):
            latents(pipe, THREE, callback_on_step_end=stop)
        assert torch.allclose(latents(pipe, ONE, num_inference_steps=1), latents(pipe, ONE, num_inference_steps=1))
        latents(pipe, ONE)
    finally:
        pipe.transformer.disable_cache()
    assert torch.equal(latents(pipe, ONE), expected)


def test_compiled_blocks_serve_all_layouts_in_one_graph_each_and_without_complex_numbers():
    rules, graphs = ConditionSettings("hard", (0, 1)), []

    def keep(graph: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plain, compiled = (tiny_flux.adapted(num_layers=1, num_single_layers=1) for _ in range(2))
    compiled.compile_repeated_blocks(dynamic=True, fullgraph=True, backend=keep)
    with torch.no_grad():
        for seeds, n_entities, n_cond in (((0, 1), 2, 3), ((2, 3), 5, 7), ((4, 5), 1, 11)):
            given = tiny_flux.condition([tiny_flux.sample(seed, n_entities, n_cond) for seed in seeds], rules)
            torch.testing.assert_close(
                tiny_flux.run(compiled, given), tiny_flux.run(plain, given), rtol=1e-5, atol=2e-5
            )
    assert len(graphs) == 2
    values = [node.meta.get("example_value") for graph in graphs for node in graph.graph.nodes]
    assert not any(value.is_complex() for value in values if isinstance(value, torch.Tensor))
