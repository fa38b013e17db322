"""Compare condition tokens computed once per image with those computed in every step."""

import copy
import dataclasses
import json

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch.nn.attention import flex_attention

import train
from seg2any import Seg2AnyPipeline
from seg2any.adapters.fold import fold
from seg2any.attention.attend import BACKENDS, AttentionPlan
from seg2any.attention.flex import BLOCK
from seg2any.attention.settings import ConditionSettings
from seg2any.diffusion import cond_cache
from seg2any.diffusion.cond_cache import ConditionCache, with_keys
from seg2any.generate.recipe import read_recipe
from tests import tiny_run
from tests.test_attention_backends import named, random_batch, random_leaves
from tests.test_fold import copied
from tests.tiny_flux import RULES, adapted, add_style, base_of, condition, inputs, run, sample
from tests.tiny_pipeline import CARD, MANY, ONE, THREE, latents_of

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
ISOLATED = dataclasses.replace(RULES, cond_attention="isolated", cond2image_attention_weight=0.4)
SAMPLES = [sample(0, 2, 4), sample(1, 0, 2), sample(2, 5, 0), sample(3, 1, 1)]


@pytest.fixture(scope="module")
def model():
    return adapted()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_answers_the_first_queries_alone(name, monkeypatch):
    """Compare with the same rows of the oracle over all tokens."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    for seed, method in enumerate(("hard", "base", "place", "none")):
        if (name, method) == ("grouped", "place"):
            continue
        tokens = random_batch(seed, grid=(11, 13))
        rules = ConditionSettings(method, (0, 0), 0.3, "isolated", "background")
        leaves = random_leaves(tokens)
        n_queries = tokens.n_text + tokens.n_image
        assert n_queries > BLOCK and tokens.n_cond > 0
        expected = AttentionPlan(tokens, named(rules, "dense")).attend(0, *leaves)[:, :n_queries]
        found = AttentionPlan(tokens, named(rules, name)).attend(0, leaves[0][:, :n_queries], *leaves[1:])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.same_numbers("condition tokens kept over the steps, and computed in each | 2e-5")
@pytest.mark.parametrize("method", ["hard", "base", "place"])
def test_a_step_with_kept_keys_is_the_step_with_tokens(model, method):
    rules = dataclasses.replace(ISOLATED, attention_mask_method=method)
    samples = SAMPLES
    if method == "place":
        rng = torch.Generator().manual_seed(0)
        covered = [torch.rand(each.masks.shape, generator=rng).numpy() for each in samples]
        samples = [dataclasses.replace(each, coverage=part) for each, part in zip(samples, covered, strict=True)]
    given = condition(samples, rules)
    known = with_keys(base_of(model), given, 1.0)
    assert sorted(known.cond_keys.of_block) == [0, 1, 2, 3] and given.cond_keys is None
    with torch.no_grad():
        for time in (0.25, 0.75):
            step = {"timestep": torch.full((4,), time), "hidden_states": inputs(4, seed=int(4 * time))["hidden_states"]}
            torch.testing.assert_close(run(model, known, **step), run(model, given, **step), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_keys_are_those_of_every_step(model, dtype):
    """Compare with keys and values that whole steps compute, at two times."""
    given = condition(SAMPLES, ISOLATED).to("cpu", dtype)
    low = copy.deepcopy(model).to(dtype)
    known, seen = with_keys(base_of(low), given, 1.0).cond_keys, []

    def tap(block, query, key, pattern):
        seen.append(key[:, -4:])

    for time in (0.125, 0.5):
        image = inputs(4, seed=int(8 * time))["hidden_states"].to(dtype)
        with torch.no_grad():
            run(low, given, hidden_states=image, timestep=torch.full((4,), time, dtype=dtype), tap=tap)
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    for number, key in enumerate(seen):
        torch.testing.assert_close(known.of_block[number % 4][0], key, **tolerance)
    heads_and_width, n_cond = 2 * 16, 4
    assert known.n_bytes == 2 * 4 * len(SAMPLES) * n_cond * heads_and_width * dtype.itemsize


def test_folded_and_with_a_style():
    given = condition(SAMPLES, ISOLATED)
    model = adapted()
    add_style(model, 0.5)
    with torch.no_grad():
        expected = run(model, given)
        torch.testing.assert_close(run(model, with_keys(base_of(model), given, 1.0)), expected, **CLOSE)
        fold(model)
        torch.testing.assert_close(run(model, with_keys(base_of(model), given, 1.0)), expected, **CLOSE)


def test_only_isolated_conditions_are_kept_and_only_while_the_guidance_stays(model, monkeypatch):
    made = []
    monkeypatch.setattr(cond_cache, "with_keys", lambda *given: made.append(given) or with_keys(*given))
    cache = ConditionCache(base_of(model))
    bidirectional, empty = condition(SAMPLES), condition([sample(0, n_cond=None)], ISOLATED)
    assert cache.of(bidirectional, 1.0) is bidirectional and cache.of(empty, 1.0) is empty and not made
    given = condition(SAMPLES, ISOLATED)
    first = cache.of(given, 1.0)
    assert cache.of(given, 1.0) is first and len(made) == 1
    other = cache.of(given, 4.0)
    assert len(made) == 2 and not torch.equal(other.cond_keys.of_block[1][0], first.cond_keys.of_block[1][0])
    assert cache.of(condition(SAMPLES, ISOLATED), 4.0) is not other and len(made) == 3


def test_what_is_not_isolated_does_depend_on_the_step(model):
    """Prove that the tests above can fail: kept keys of bidirectional tokens are wrong."""
    given = condition(SAMPLES, RULES)
    with torch.no_grad():
        assert not torch.allclose(run(model, with_keys(base_of(model), given, 1.0)), run(model, given), atol=1e-3)


class TestPipeline:
    @pytest.fixture
    def isolated(self, pipe) -> Seg2AnyPipeline:  # noqa: F811
        twin = copied(pipe)
        twin.card = dataclasses.replace(
            CARD, condition=CARD.condition.override({"cond_attention": "isolated", "cond_scale_factor": 1})
        )
        return twin

    @pytest.fixture
    def uncached(self, isolated, monkeypatch):
        """Return the images of the same call with the condition tokens in every step."""

        def images(layouts, **arguments):
            with monkeypatch.context() as patched:
                patched.setattr(cond_cache, "can_keep", lambda condition: False)
                return latents_of(isolated, layouts, **arguments)

        return images

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"attention_mask_method": "base", "cond2image_attention_weight": 0.5},
            {"attention_mask_method": "place"},
            {"num_images_per_prompt": 2},
            {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0, "cfg_in_one_pass": True},
            {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0, "cfg_in_one_pass": False},
            {"hard_attn_block_range": (0, 4), "is_filter_cond_token": False},
        ],
        ids=str,
    )
    def test_images_are_those_without_the_cache(self, isolated, uncached, arguments):
        expected = uncached(MANY, **arguments)
        torch.testing.assert_close(latents_of(isolated, MANY, **arguments), expected, atol=1e-4, rtol=0)

    def test_condition_tokens_pass_the_transformer_once(self, isolated):
        lengths = []
        isolated.transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
        )
        latents_of(isolated, ONE, num_inference_steps=3)
        n_image = 64 * 96 // 16**2
        assert lengths[0] > 1 and lengths[1:] == [n_image] * 3

    def test_guidance_that_a_callback_changes_counts(self, isolated, uncached):
        def change(pipe, step, timestep, tensors):  # noqa: F811
            pipe._guidance_scale = 9.0

        arguments = {"callback_on_step_end": change, "num_inference_steps": 3}
        torch.testing.assert_close(
            latents_of(isolated, THREE, **arguments), uncached(THREE, **arguments), atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("threshold", [0.0, 1e9], ids=["never skips", "always skips"])
    def test_step_caches_do_as_without(self, isolated, uncached, threshold):
        """Step caches must not mistake the pass of the condition for a denoising step."""
        arguments = {"num_inference_steps": 3, "step_cache": FirstBlockCacheConfig(threshold=threshold)}
        arguments |= {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0, "cfg_in_one_pass": False}
        torch.testing.assert_close(
            latents_of(isolated, MANY, **arguments), uncached(MANY, **arguments), atol=1e-4, rtol=0
        )

    def test_offloaded_by_blocks(self, isolated, uncached):
        expected, cpu = uncached(MANY), torch.device("cpu")
        isolated.transformer.enable_group_offload(
            onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
        )
        torch.testing.assert_close(latents_of(isolated, MANY), expected, atol=1e-4, rtol=0)


def test_training_isolated_is_recorded_and_generation_follows_it(tiny_model, tmp_path, call, monkeypatch):  # noqa: F811
    """Follow the setting from train.py's config to the attention of infer.py."""
    short = ["--trainer.max_train_steps=1", "--trainer.checkpointing_steps=1", "--model.cond_attention=isolated"]
    assert train.main([*tiny_run.arguments(tiny_model, tmp_path), *short]) == 0
    adapter = tmp_path / "run" / "checkpoint-1"
    assert json.loads((adapter / "adapter.json").read_text())["cond_attention"] == "isolated"
    made = []
    monkeypatch.setattr(cond_cache, "with_keys", lambda *given: made.append(given[1].settings) or with_keys(*given))
    ONE.write(tmp_path / "masks" / "one.json")
    flags = {"pretrained_model_name_or_path": tiny_model, "lora_ckpt_path": adapter, "num_inference_steps": 3}
    status, errors = call(seg_mask_path=tmp_path / "masks", output_path=tmp_path / "out", **flags)
    assert status == 0, errors
    assert [rules.cond_attention for rules in made] == ["isolated"]
    assert read_recipe(tmp_path / "out" / "one.png")["settings"]["cond_attention"] == "isolated"
