"""Test folding `default` into the base weights: block by block, undone, saved, and with other adapters."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import nn

from benchmarks import fold as benchmark
from seg2any import Seg2AnyPipeline
from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import COND, DEFAULT, add_adapters, load_adapters, save_adapters, trainable_parameters
from seg2any.adapters.fold import FOLDED_KEY, fold, is_folded, unfold
from seg2any.adapters.routing import Rows, linear
from seg2any.bases.flux1.saved import load_saved, without_adapters
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.generate.recipe import read_recipe
from seg2any.system.errors import UserError
from tests.tiny_flux import adapted, add_style, condition, inputs, plain_inputs, run, sample, tiny
from tests.tiny_pipeline import CARD, MANY, ONE, copied, latents_of

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture
def given():
    return condition([sample(0), sample(1, 5, 1), sample(2, n_cond=0)])


def everything(model: nn.Module, given) -> list[torch.Tensor]:
    """Record the outputs of every block and of the model, with a condition and without, in float32."""
    seen = []
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    hooks = [block.register_forward_hook(lambda _, __, out: seen.extend(out)) for block in blocks]
    plain = {name: x if "ids" in name else x.to(model.dtype) for name, x in plain_inputs().items()}
    image = inputs(given.tokens.batch_size)["hidden_states"].to(model.dtype)
    with torch.no_grad():
        seen += [run(model, given, hidden_states=image), run(model, **plain)]
    for hook in hooks:
        hook.remove()
    return [x.float() for x in seen]


def base_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items() if "lora_" not in name}


@pytest.mark.same_numbers("folded adapters, and routed ones | 2e-5")
def test_every_block_computes_the_same_and_unfolding_gives_the_weights_back(given):
    model = adapted()
    weights, expected = base_weights(model), everything(model, given)
    fold(model)
    assert is_folded(model)
    torch.testing.assert_close(everything(model, given), expected, **CLOSE)
    changed = {name for name, weight in base_weights(model).items() if not torch.equal(weight, weights[name])}
    layers = {f"{n}.base_layer.weight" for n, m in model.named_modules() if DEFAULT in getattr(m, "lora_A", {})}
    assert changed == layers
    unfold(model)
    assert not is_folded(model)
    torch.testing.assert_close(base_weights(model), weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(everything(model, given), expected, **CLOSE)


def test_a_folded_weight_is_the_formula_and_text_and_image_rows_use_no_adapter(monkeypatch):
    model = adapted(rank=3, alpha=6)
    layer, x = model.transformer_blocks[0].attn.to_q, torch.randn(2, 5, 32)
    matrices = {name: 2.0 * layer.lora_B[name].weight @ layer.lora_A[name].weight for name in (DEFAULT, COND)}
    weight, bias = layer.base_layer.weight.clone(), layer.base_layer.bias
    fold(model)
    torch.testing.assert_close(layer.base_layer.weight, weight + matrices[DEFAULT])
    expected = torch.cat([x[:, :3] @ (weight + matrices[DEFAULT]).T, x[:, 3:] @ (weight + matrices[COND]).T], 1)
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x, Rows(2)), expected + bias, **CLOSE)
    rows = []
    for name in (DEFAULT, COND):
        layer.lora_A[name].register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
    with torch.no_grad():
        linear(layer, x, Rows(2)), linear(layer, x, Rows(0))
    assert rows == [2, 2], "both adapters on the two condition rows, none on the others"


def test_bfloat16_is_as_close_to_the_truth_folded_as_unfolded(given):
    """The truth is float32 arithmetic on the same bfloat16 weights."""
    low = adapted().bfloat16()
    given = given.to("cpu", torch.bfloat16)
    truth = everything(copy.deepcopy(low).float(), given.to("cpu", torch.float32))
    results = [everything(low, given)]
    for change in (fold, unfold):
        change(low)
        results.append(everything(low, given))
    for unfolded, folded, back, exact in zip(*results, truth, strict=True):
        noise = (unfolded - exact).norm()
        assert noise > 0 and (folded - exact).norm() < 3 * noise and (back - exact).norm() < 2 * noise


def test_a_style_joins_before_or_after_and_may_be_merged(given):
    results = {}
    for when in ("never folded", "style first", "style last", "both merged"):
        model = adapted()
        if when == "style last":
            fold(model)
        add_style(model, 0.6)
        if when in ("style first", "both merged"):
            fold(model)
        if when == "both merged":
            model.fuse_lora(adapter_names=["style"])
        results[when] = everything(model, given)
    torch.testing.assert_close(results["style first"], results["never folded"], **CLOSE)
    torch.testing.assert_close(results["style last"], results["never folded"], **CLOSE)
    torch.testing.assert_close(results["both merged"], results["never folded"], **CLOSE)
    assert not torch.allclose(results["style last"][-2], everything(adapted(), given)[-2], atol=1e-3)


def test_weights_that_change_after_folding_count(given):
    """`set_adapters`, `scale` of a call and `disable_adapters` act as without folding."""
    results = []
    for change in (lambda model: None, fold):
        model = adapted()
        change(model)
        model.set_adapters([DEFAULT, COND], [0.5, 0.8])
        found = everything(model, given)
        with torch.no_grad():
            found.append(run(model, given, joint_attention_kwargs={"condition": given, "scale": 0.3}))
        model.disable_adapters()
        results.append([*found, *everything(model, given)])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_a_fold_with_another_weight_is_taken_out_whole():
    model = adapted()
    weights = base_weights(model)
    model.set_adapters([DEFAULT, COND], [0.5, 1.0])
    fold(model)
    model.set_adapters([DEFAULT, COND], [1.0, 1.0])
    unfold(model)
    torch.testing.assert_close(base_weights(model), weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("remove", [lambda m: m.unload_lora(), lambda m: m.delete_adapters([DEFAULT, COND])])
def test_removing_the_adapters_leaves_the_plain_model(given, remove):
    model = adapted()
    fold(model)
    remove(model)
    torch.testing.assert_close(everything(model, given), everything(tiny(), given), **CLOSE)


def test_refusals_are_one_line(tmp_path):
    model = tiny()
    with pytest.raises(UserError, match="'default' is not active"):
        fold(model)
    model = adapted()
    save_adapters(model, tmp_path, AdapterCard())
    with pytest.raises(UserError, match="not folded"):
        unfold(model)
    fold(model)
    for twice in (
        lambda: fold(model),
        lambda: load_adapters(model, tmp_path),
        lambda: add_adapters(model, 2),
        lambda: trainable_parameters(model),
    ):
        with pytest.raises(UserError, match="already .*folded") as caught:
            twice()
        assert "\n" not in str(caught.value)


class Quantised(nn.Linear):
    """A subclass of Linear, like the quantised layers of bitsandbytes."""


def by_class(layer):
    layer.base_layer.__class__ = Quantised


def by_storage(layer):
    layer.base_layer.weight.data = layer.base_layer.weight.data.to(torch.float8_e4m3fn)


def by_tensor(layer):
    kind = type("Int8Tensor", (nn.Parameter,), {})
    layer.base_layer.weight.__class__ = kind


@pytest.mark.parametrize("quantise", [by_class, by_storage, by_tensor])
def test_quantised_and_offloaded_weights_are_refused_and_nothing_is_changed(quantise):
    model = adapted()
    weights = base_weights(model)
    last = model.single_transformer_blocks[-1].attn.to_v
    quantise(last)
    with pytest.raises(UserError, match="1.attn.to_v is quantised") as caught:
        fold(model)
    assert "\n" not in str(caught.value) and not is_folded(model)
    for name, weight in base_weights(model).items():
        assert "1.attn.to_v" in name or torch.equal(weight, weights[name])
    model = adapted()
    model.transformer_blocks[0].attn.to_q.base_layer.to("meta")
    with pytest.raises(UserError, match="to_q is offloaded"):
        fold(model)


def test_training_is_unaffected_by_a_fold_that_was_undone(given):
    grads = []
    for times in (0, 1):
        model = adapted()
        for _ in range(times):
            fold(model)
            unfold(model)
        trainable_parameters(model)
        run(model, given).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    assert all(grad is not None for grad in grads[0].values())
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


class TestPipeline:
    def test_images_are_those_of_the_unfolded_one_with_a_style_or_without(self, pipe):  # noqa: F811
        folded, styled = copied(pipe), copied(pipe)
        steered = {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0}
        for arguments in ({}, {"attention_mask_method": "place"}, {"is_use_cond_token": False}, steered):
            expected = latents_of(pipe, MANY, **arguments)
            folded.fold()
            torch.testing.assert_close(latents_of(folded, MANY, **arguments), expected, atol=1e-4, rtol=0)
            folded.unfold()
        folded.fold()
        for each in (folded, styled):
            add_style(each.transformer, 0.6)
        expected = latents_of(styled, MANY)
        torch.testing.assert_close(latents_of(folded, MANY), expected, atol=1e-4, rtol=0)
        assert is_folded(folded.transformer) and (latents_of(pipe, MANY) - expected).abs().max() > 1e-2

    def test_a_saved_folded_model_loads_alike_and_says_what_it_is(self, pipe, tmp_path):  # noqa: F811
        folded = copied(pipe)
        with pytest.raises(UserError, match="no card"):
            folded.fold()
            folded.save_pretrained(tmp_path / "none")
        assert not (tmp_path / "none").exists()
        folded.card = CARD
        folded.transformer.set_adapters([DEFAULT, COND], [0.7, 1.0])
        folded.unfold()
        folded.fold()
        folded.save_pretrained(tmp_path / "model")
        again = Seg2AnyPipeline.from_pretrained(tmp_path / "model")
        again.set_progress_bar_config(disable=True)
        assert again.card.condition.attention_mask_method == "base" and is_folded(again.transformer)
        torch.testing.assert_close(latents_of(again, MANY), latents_of(folded, MANY), atol=1e-6, rtol=0)
        config = json.loads((tmp_path / "model" / "transformer" / "config.json").read_text())
        assert config[FOLDED_KEY] == pytest.approx(0.7 * 2 / 4)
        for twice in (again.fold, lambda: again.load_adapters(tmp_path / "model" / "adapters")):
            with pytest.raises(UserError, match="folded"):
                twice()
        again.unfold()
        torch.testing.assert_close(
            without_adapters(again.transformer).state_dict(),
            without_adapters(pipe.transformer).state_dict(),
            rtol=0,
            atol=1e-6,
        )
        again.save_pretrained(tmp_path / "plain")
        assert not is_folded(Seg2AnyPipeline.from_pretrained(tmp_path / "plain").transformer)

    @pytest.mark.parametrize("names", [["style"], None], ids=["style", "all"])
    def test_fused_adapters_are_not_saved_as_if_they_were_the_base(self, pipe, tmp_path, names):  # noqa: F811
        """Loaded again, they would also act on condition tokens, and `default` would act twice."""
        for folds in (True, False):
            fused = copied(pipe)
            fused.card = CARD
            add_style(fused.transformer, 0.6)
            if folds:
                fused.fold()
            fused.transformer.fuse_lora(adapter_names=names)
            with pytest.raises(UserError, match="style: fused into the weights.*unfuse_lora") as caught:
                fused.save_pretrained(tmp_path / "saved")
            assert "\n" not in str(caught.value) and not (tmp_path / "saved").exists()
        fused.transformer.unfuse_lora()
        fused.save_pretrained(tmp_path / "saved")

    def test_stock_flux_and_a_lone_transformer_load_the_weights(self, pipe, tmp_path):  # noqa: F811
        folded = copied(pipe)
        folded.card = CARD
        folded.fold()
        folded.save_pretrained(tmp_path)
        stock = FluxPipeline.from_pretrained(tmp_path).transformer
        assert type(stock) is FluxTransformer2DModel
        expected = without_adapters(folded.transformer).state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in stock.state_dict().items())
        lone = Seg2AnyTransformer2DModel.from_pretrained(tmp_path / "transformer")
        with pytest.raises(UserError, match="folded"):
            load_adapters(lone, tmp_path / "adapters")
        with pytest.raises(UserError, match="adapters/"):
            load_saved(lone, tmp_path / "transformer")


def test_the_benchmark_measures_all_schemes_and_refuses_to_time_wrong_ones(
    tiny_model,
    pipe,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    pipe.save_adapters(tmp_path / "lora", CARD)
    ONE.write(tmp_path / "one.json")
    words = [
        "--rounds=1",
        f"--model={tiny_model}",
        f"--lora={tmp_path / 'lora'}",
        f"--layout={tmp_path / 'one.json'}",
    ]
    monkeypatch.setattr("sys.argv", words)
    assert benchmark.main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["seconds"]) == ["plain", "unfolded", "folded", "kept", "once"]
    blocks, width = 5, 32
    assert report["kept_bytes"] == 2 * blocks * width * report["tokens"]["condition"] * 4
    monkeypatch.setattr(benchmark, "MOST_DIFFERENCE", 1e-4)  # small adapters change little of a random model
    monkeypatch.setattr(Seg2AnyPipeline, "fold", lambda pipe: pipe.transformer.disable_adapters())
    assert benchmark.main(words) == 2
    assert "folded: the output differs" in capsys.readouterr().err


class TestInfer:
    """`infer.py --fold`, and infer.py with a model that was saved folded."""

    def test_images_and_settings_are_those_of_the_adapter(self, tiny_model, pipe, tmp_path, call):  # noqa: F811
        condition = CARD.condition.override({"cond_scale_factor": 1})
        pipe.save_adapters(tmp_path / "lora", dataclasses.replace(CARD, condition=condition, resolution=80))
        folded = Seg2AnyPipeline.from_pretrained(tiny_model)
        folded.load_adapters(tmp_path / "lora")
        folded.fold()
        folded.save_pretrained(tmp_path / "folded")
        ONE.write(tmp_path / "masks" / "one.json")
        loaded = {"pretrained_model_name_or_path": tiny_model, "lora_ckpt_path": tmp_path / "lora"}
        for name, words, flags in (
            ("unfolded", [], loaded),
            ("flag", ["--fold"], loaded),
            ("saved", [], {"pretrained_model_name_or_path": tmp_path / "folded"}),
        ):
            flags = {"seg_mask_path": tmp_path / "masks", "output_path": tmp_path / name, **flags}
            status, errors = call(*words, **flags)
            assert status == 0 and "warning" not in errors, errors
        expected = np.asarray(Image.open(tmp_path / "unfolded" / "one.png")).astype(int)
        for name in ("flag", "saved"):
            made = tmp_path / name / "one.png"
            assert np.abs(np.asarray(Image.open(made)).astype(int) - expected).max() <= 1
            assert read_recipe(made)["settings"]["attention_mask_method"] == "base"

        for words, flags, message in (
            (["--fold"], {}, "--fold: .*folded is folded already"),
            (["--fold"], {"pretrained_model_name_or_path": tiny_model}, "--fold: there is no adapter"),
            ([], {"lora_ckpt_path": tmp_path / "lora"}, "has its adapters folded in already"),
        ):
            flags = {"pretrained_model_name_or_path": tmp_path / "folded", **flags}
            status, errors = call(*words, seg_mask_path=tmp_path / "masks", output_path=tmp_path / "twice", **flags)
            assert status == 2 and len(errors.splitlines()) == 1 and re.search(message, errors), errors
