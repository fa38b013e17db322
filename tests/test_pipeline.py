"""Compare Seg2AnyPipeline with stock FLUX, with single images, and with arithmetic by hand."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline
from diffusers.callbacks import PipelineCallback
from safetensors.torch import save_file

from seg2any import Layout, Seg2AnyPipeline
from seg2any.attention.settings import PLAIN, ConditionSettings
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.errors import UserError
from tests.tiny_pipeline import CARD, CLOSE, FAST, HARD, MANY, ONE, SIZE, THREE, TWO, fresh_pipe, images_of, latents_of

pytestmark = pytest.mark.slow


def test_stock_folder_loads_with_our_transformer_and_saves_as_a_stock_folder(stock_pipe, tmp_path):
    stock_pipe.save_pretrained(tmp_path / "stock")
    pipe = Seg2AnyPipeline.from_pretrained(tmp_path / "stock")
    assert type(pipe.transformer) is Seg2AnyTransformer2DModel
    pipe.save_pretrained(tmp_path / "ours")
    again = FluxPipeline.from_pretrained(tmp_path / "ours")
    expected = stock_pipe.transformer.state_dict()
    found = again.transformer.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert type(Seg2AnyPipeline.from_pretrained(tmp_path / "ours").transformer) is Seg2AnyTransformer2DModel


def test_a_folder_in_16_bit_loads_in_one_precision(stock_pipe, tmp_path):
    copy.deepcopy(stock_pipe).to(torch.float16).save_pretrained(tmp_path)
    pipe = Seg2AnyPipeline.from_pretrained(tmp_path)
    parts = (pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert Seg2AnyPipeline.from_pretrained(tmp_path, dtype=torch.float16).text_encoder_2.dtype == torch.float16


@pytest.mark.parametrize("caption", ["a red circle", "a caption of more words than are read of it, on and on and on"])
def test_none_is_stock_flux_with_the_global_caption(stock_pipe, caption):
    expected = stock_pipe(
        prompt=caption, height=64, width=96, num_inference_steps=3, max_sequence_length=24, output_type="latent",
        guidance_scale=2.0, generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = images_of(
            fresh_pipe(stock_pipe), dataclasses.replace(THREE, caption=caption), attention_mask_method="none",
            num_inference_steps=3, seeds=[5], max_sequence_length=24, output_type="latent", guidance_scale=2.0,
        )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_none_with_true_cfg_is_stock_true_cfg(stock_pipe):
    common = {"negative_prompt": "a green star", "true_cfg_scale": 3.0, "output_type": "latent"}
    expected = stock_pipe(
        prompt="a red circle", height=64, width=96, num_inference_steps=3, max_sequence_length=24,
        generator=torch.Generator().manual_seed(11), **common,
    ).images  # fmt: skip
    plain = ConditionSettings("none", max_sequence_length=24)
    found = fresh_pipe(stock_pipe)(ONE, settings=plain, num_inference_steps=3, **common).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.same_numbers("a layout in a batch, and alone | 1e-4")
@pytest.mark.parametrize("method", ["hard", "base", "place"])
def test_an_image_does_not_depend_on_its_batch(pipe, method):
    together = latents_of(pipe, MANY, attention_mask_method=method)
    for number, one in enumerate(MANY):
        torch.testing.assert_close(together[number], latents_of(pipe, one, attention_mask_method=method)[0], **CLOSE)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.same_numbers("a layout in a batch, and alone | 1e-4")
def test_several_images_of_several_layouts_pair_correctly(pipe):
    together = latents_of(pipe, [ONE, THREE], num_images_per_prompt=2, seeds=[1, 2, 3, 4])
    pairs = zip([ONE, ONE, THREE, THREE], [1, 2, 3, 4], strict=True)
    alone = torch.cat([latents_of(pipe, one, seeds=[seed]) for one, seed in pairs])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_seeds_come_from_the_layout_and_count_up(pipe):
    own = latents_of(pipe, [ONE, THREE], num_images_per_prompt=2)
    assert torch.equal(own, latents_of(pipe, [ONE, THREE], num_images_per_prompt=2, seeds=[11, 12, 13, 14]))
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12, 13, 14)]
    assert torch.equal(own, latents_of(pipe, [ONE, THREE], num_images_per_prompt=2, generator=generators))


def test_one_generator_serves_the_images_in_turn_as_in_stock_flux(stock_pipe):
    common = {"num_inference_steps": 1, "num_images_per_prompt": 2, "max_sequence_length": 24, "output_type": "latent"}
    expected = stock_pipe("a red circle", height=64, width=96, generator=torch.Generator().manual_seed(5), **common)
    generator = torch.Generator().manual_seed(5)
    found = images_of(fresh_pipe(stock_pipe), ONE, attention_mask_method="none", generator=generator, **common)
    torch.testing.assert_close(found, expected.images, atol=1e-5, rtol=0)


def test_seeded_images_leave_the_global_generator_alone(pipe):
    before = torch.get_rng_state()
    latents_of(pipe, MANY)
    assert torch.equal(torch.get_rng_state(), before)


def test_layouts_without_a_seed_draw_one_from_the_global_generator(pipe):
    unseeded = dataclasses.replace(ONE, seed=None)
    torch.manual_seed(0)
    first = latents_of(pipe, [unseeded, unseeded])
    torch.manual_seed(0)
    assert torch.equal(first, latents_of(pipe, [unseeded, unseeded]))
    assert (first[0] - first[1]).abs().max() > 0.1


def test_given_latents_are_the_start(pipe):
    noise = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(0))
    starts = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: starts.append(kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        latents_of(pipe, ONE, latents=noise)
    finally:
        pipe.transformer._forward_pre_hooks.clear()
        pipe.transformer._forward_pre_hooks_with_kwargs.clear()
    assert torch.equal(starts[0], noise)


def test_true_cfg_moves_away_from_the_negative_prompt_in_every_region(pipe):
    """One Euler step is linear in the velocity, so latents combine as velocities do."""
    once = {"num_inference_steps": 1, "seeds": [3], "is_use_cond_token": True}
    against = "a plain heart"
    negated = Layout(THREE.masks, (against,) * 3, against)
    positive, negative = latents_of(pipe, THREE, **once), latents_of(pipe, negated, **once)
    found = latents_of(pipe, THREE, **once, negative_prompt=against, true_cfg_scale=2.5)
    torch.testing.assert_close(found, negative + 2.5 * (positive - negative), **CLOSE)
    assert torch.equal(latents_of(pipe, THREE, **once, negative_prompt=against), positive)


def test_an_empty_negative_prompt_counts(pipe):
    plain, steered = (latents_of(pipe, TWO, negative_prompt="", true_cfg_scale=scale) for scale in (1.0, 2.0))
    assert (plain - steered).abs().max() > 1e-3


def test_a_blank_contour_is_no_contour(pipe):
    blank = dataclasses.replace(THREE, masks=np.zeros_like(THREE.masks))
    torch.testing.assert_close(latents_of(pipe, blank), latents_of(pipe, blank, is_use_cond_token=False), **CLOSE)
    beside = latents_of(pipe, [blank, ONE])
    torch.testing.assert_close(beside[0], latents_of(pipe, blank)[0], **CLOSE)


def test_callback_sees_and_replaces_every_step(pipe):
    seen = []

    def halve(pipe, step, timestep, tensors):
        seen.append((step, round(timestep.item()), tensors["latents"]))
        return {"latents": tensors["latents"] * 0}

    final = latents_of(pipe, ONE, callback_on_step_end=halve, num_inference_steps=3)
    assert [(step, time) for step, time, _ in seen][0] == (0, 1000) and len(seen) == 3
    assert not final.any()
    assert all(latents.any() for _, _, latents in seen)


def test_callbacks_get_what_they_ask_for(pipe):
    seen = []

    def keep(pipe, step, timestep, tensors):
        seen.append([*tensors])
        return tensors

    class Zero(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] * 0}

    plain = latents_of(pipe, ONE)
    unseen = latents_of(pipe, ONE, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=[])
    assert seen == [[], []] and torch.equal(unseen, plain)
    zero = latents_of(pipe, ONE, callback_on_step_end=Zero(cutoff_step_ratio=1.0, cutoff_step_index=None))
    assert not zero.any() and plain.any()


def test_layouts_are_read_from_their_files_and_folders(pipe, tmp_path):
    ONE.write(tmp_path / "a.npz")
    (tmp_path / "b").mkdir()
    for number, layout in enumerate((ONE, THREE)):
        layout.write(tmp_path / "b" / f"{number}.npz")
    one, both = latents_of(pipe, ONE), latents_of(pipe, [ONE, THREE])
    assert torch.equal(latents_of(pipe, str(tmp_path / "a.npz")), one)
    assert torch.equal(latents_of(pipe, tmp_path / "b"), both)
    assert torch.equal(latents_of(pipe, [tmp_path / "a.npz", THREE]), both)
    assert torch.equal(latents_of(pipe, (layout for layout in (ONE, THREE))), both)


def test_a_prompt_is_the_global_caption(pipe):
    captions = ["a letter", "a green star"]
    others = [dataclasses.replace(layout, caption=text) for layout, text in zip([ONE, TWO], captions, strict=True)]
    assert torch.equal(latents_of(pipe, [ONE, TWO], prompt=captions), latents_of(pipe, others))
    same = [dataclasses.replace(layout, caption="a letter") for layout in (ONE, TWO)]
    assert torch.equal(latents_of(pipe, [ONE, TWO], prompt="a letter"), latents_of(pipe, same))


def test_without_return_dict_a_tuple_is_returned(pipe):
    settings = pipe.settings.override({**HARD, "max_sequence_length": 24, "regional_max_sequence_length": 12})
    (images,) = pipe(ONE, settings=settings, num_inference_steps=2, output_type="latent", return_dict=False)
    assert torch.equal(images, latents_of(pipe, ONE))


def test_nan_is_not_saved_as_black(pipe):
    with pytest.raises(UserError, match="NaN"):
        latents_of(
            pipe,
            ONE,
            callback_on_step_end=lambda *_: {"latents": torch.full((1, 24, 64), torch.nan)},
            output_type="pil",
        )


def test_interrupting_stops_after_the_step(pipe):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(tensors["latents"])
        pipe._interrupt = step == 1

    final = latents_of(pipe, ONE, callback_on_step_end=stop, num_inference_steps=5)
    assert len(steps) == 2 and torch.equal(final, steps[-1])


def test_output_types_hold_the_same_image(pipe):
    arguments = {**HARD, **FAST, "seeds": [1]}
    pil, array, tensor = (images_of(pipe, ONE, **{**arguments, "output_type": kind}) for kind in ("pil", "np", "pt"))
    assert array.shape == (1, *SIZE, 3) and tensor.shape == (1, 3, *SIZE)
    np.testing.assert_array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))


def test_size_is_the_layouts_in_whole_condition_tokens_unless_given(pipe):
    odd = Layout(np.ones((1, 79, 101), dtype=bool), ("a blue square",), "a red circle")
    arguments = {**FAST, **HARD, "output_type": "np", "num_inference_steps": 1}
    assert images_of(pipe, odd, **arguments).shape[1:3] == (64, 96)
    assert images_of(pipe, odd, cond_scale_factor=2, width=70, **arguments).shape[1:3] == (64, 64)


@pytest.mark.parametrize(
    ("layouts", "arguments", "named"),
    [
        ([], {}, "layouts"),
        ([ONE, Layout(np.ones((1, 32, 32), dtype=bool), ("a",))], {}, "layouts: .*32x32, 64x96"),
        (ONE, {"seeds": [1, 2]}, "2 seeds"),
        (ONE, {"seeds": [1], "generator": torch.Generator()}, "seeds, generator"),
        (ONE, {"latents": torch.zeros(1, 24, 16)}, "latents"),
        (ONE, {"height": 8}, "image size"),
        (ONE, {"height": 64.0}, "height is 64.0"),
        (ONE, {"width": "64"}, "width"),
        (ONE, {"guidance_scale": "3"}, "guidance_scale"),
        (ONE, {"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
        (ONE, {"cond2image_attention_weight": 2.0}, "cond2image_attention_weight"),
        (ONE, {"num_inference_steps": 0}, "num_inference_steps"),
        (ONE, {"num_inference_steps": 2.5}, "num_inference_steps"),
        (ONE, {"guidance_scale": float("nan")}, "guidance_scale"),
        (ONE, {"negative_prompt": "a", "true_cfg_scale": float("nan")}, "true_cfg_scale"),
        (ONE, {"negative_prompt": ["a"], "true_cfg_scale": 2.0}, "negative_prompt"),
        (ONE, {"seeds": 5}, "seeds"),
        (ONE, {"seeds": [float("nan")]}, "seed: nan"),
        (ONE, {"seeds": [-5]}, "seed: -5"),
        (ONE, {"seeds": [2**70]}, "seed: 1180591620717411303424"),
        ("five.json", {}, "five.json: no such file"),
        (["five.json", ONE], {}, "five.json: no such file"),
        (7, {}, "layouts: 7 is not a Layout"),
        ([ONE, None], {}, "layouts: None is not a Layout"),
        (ONE, {"prompt": ["a", "b"]}, "prompt is .*one per layout \\(1\\)"),
        (ONE, {"prompt": 3}, "prompt is 3"),
        (ONE, {"prompt": " "}, "caption is empty"),
        (ONE, {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "choose from \\['latents'\\]"),
        (Layout(np.zeros((0, 64, 96), dtype=bool), ()), {}, "`caption`"),
        (ONE, {"max_sequence_length": 513}, "^max_sequence_length"),
        (ONE, {"regional_max_sequence_length": 2**40}, "^regional_max_sequence_length"),
        (ONE, {"num_images_per_prompt": 0}, "num_images_per_prompt"),
        (ONE, {"attention_mask_method": "soft"}, "attention_mask_method"),
        (TWO, {"attention_mask_method": "none"}, "`caption`"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(pipe, layouts, arguments, named):
    with pytest.raises(UserError, match=named) as caught:
        latents_of(pipe, layouts, **arguments)
    assert "\n" not in str(caught.value)


def test_a_block_range_past_the_last_block_is_reported_not_scaled(pipe):
    with pytest.warns(UserWarning, match="hard_attn_block_range 19 37"):
        found = latents_of(pipe, ONE, hard_attn_block_range=(19, 37))
    assert torch.equal(found, latents_of(pipe, ONE, attention_mask_method="base"))


def test_known_texts_spare_the_encoders(pipe, monkeypatch):
    known = {}
    first = latents_of(pipe, MANY, known_texts=known)
    monkeypatch.setattr(pipe.text_encoder_2, "forward", None)
    monkeypatch.setattr(pipe.text_encoder, "forward", None)
    assert torch.equal(first, latents_of(pipe, MANY, known_texts=known))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.3), (torch.float16, 0.03)])
def test_lower_precision_makes_the_same_image(pipe, dtype, tolerance):
    half = Seg2AnyPipeline(**copy.deepcopy(pipe.components)).to(dtype)
    half.set_progress_bar_config(disable=True)
    found = latents_of(half, MANY)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), latents_of(pipe, MANY), atol=tolerance, rtol=0)
    assert np.isfinite(images_of(half, ONE, **{**FAST, **HARD, "output_type": "np"})).all()


@pytest.mark.same_numbers("weights that move, and weights in place | 1e-4")
def test_offloaded_parts_make_the_same_image(pipe):
    offloaded = Seg2AnyPipeline(**copy.deepcopy(pipe.components))
    offloaded.set_progress_bar_config(disable=True)
    cpu = torch.device("cpu")
    offloaded.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    torch.testing.assert_close(latents_of(offloaded, MANY), latents_of(pipe, MANY), rtol=0, atol=1e-4)


@pytest.mark.same_numbers("a step cache that never skips, and none | equal")
def test_a_step_cache_keeps_the_passes_of_true_cfg_apart(pipe):
    """With threshold 0 the cache never skips a step, so the image must not change."""
    cached = Seg2AnyPipeline(**copy.deepcopy(pipe.components))
    cached.set_progress_bar_config(disable=True)
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    steered = {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0}
    assert torch.equal(latents_of(cached, MANY, **steered), latents_of(pipe, MANY, **steered))


def test_loaded_adapters_bring_their_settings(pipe, stock_pipe, tmp_path):
    with pytest.raises(UserError, match="no card"):
        pipe.save_adapters(tmp_path)
    pipe.save_adapters(tmp_path, CARD)
    loaded = fresh_pipe(stock_pipe)
    loaded.load_adapters(str(tmp_path))
    assert (loaded.card.rank, loaded.card.alpha) == (4, 2)
    explicit = latents_of(pipe, THREE, attention_mask_method="base", cond_scale_factor=2)
    fast = {"num_inference_steps": 2, "output_type": "latent"}
    assert torch.equal(loaded(THREE, **fast).images, explicit)
    changed = images_of(loaded, THREE, **fast, cond_scale_factor=1)
    loaded.unload_lora_weights()
    assert loaded.settings == PLAIN, "without adapters it is stock FLUX"
    assert torch.equal(changed, latents_of(pipe, THREE, attention_mask_method="base"))
    assert not torch.equal(changed, explicit)


def test_a_style_lora_joins_with_its_weight_and_leaves_ours_on(pipe, stock_pipe, tmp_path):
    """Compare with adding weight x (alpha / rank) x B A to the base weight, without condition tokens."""
    layer = "transformer_blocks.0.attn.to_q"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    save_file(
        {f"transformer.{layer}.lora_A.weight": a, f"transformer.{layer}.lora_B.weight": b},
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    pipe.save_adapters(tmp_path / "ours", CARD)
    styled, by_hand = fresh_pipe(stock_pipe), fresh_pipe(stock_pipe)
    for each in (styled, by_hand):
        each.load_adapters(str(tmp_path / "ours"))
    styled.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    assert set(styled.get_active_adapters()) == {"default", "cond", "style"}
    styled.set_adapters(["default", "cond", "style"], [1.0, 1.0, 0.3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = latents_of(by_hand, ONE, is_use_cond_token=False)
    by_hand.transformer.get_submodule(layer).base_layer.weight.data += 0.3 * b @ a
    found = latents_of(styled, ONE, is_use_cond_token=False)
    torch.testing.assert_close(found, latents_of(by_hand, ONE, is_use_cond_token=False), **CLOSE)
    assert (found - without).abs().max() > 1e-2
    styled.set_adapters(["style"], [0.3])  # as in diffusers the others are off now, which is easily overlooked
    with pytest.warns(UserWarning, match="default, cond"):
        latents_of(styled, ONE, is_use_cond_token=False)


def test_what_would_do_nothing_is_said_and_what_cannot_be_is_refused_before_the_work(stock_pipe, monkeypatch):
    pipe = fresh_pipe(stock_pipe)
    monkeypatch.setattr("seg2any.generate.pipeline.denoise", lambda pipe, noise, *rest: noise)
    with pytest.warns(UserWarning, match="true_cfg_scale") as caught:
        pipe(THREE, true_cfg_scale=2.0, output_type="latent")
    assert __file__ in {warning.filename for warning in caught}
    with pytest.warns(UserWarning, match="negative_prompt"):
        pipe(THREE, negative_prompt="", output_type="latent")
    with pytest.raises(UserError, match="output_type"):
        pipe(THREE, output_type="gif")
