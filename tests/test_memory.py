"""Memory of training against autograd and FLUX.1-dev; adapters on quantised weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from seg2any.adapters.files import add_adapters
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.errors import UserError
from seg2any.training import build, config
from seg2any.training.memory import EncoderSizes, Launch, estimate, kept_per_token, most_copies
from tests import tiny_flux

CONFIGS = Path(__file__).parents[1] / "config"
TOKENS = (4096, 262, 1024)  # image, text and unfiltered 512 px contour of an SACap-1M sample at 1024 px
FP32 = Launch(width=4)
needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def flux():
    """Build FLUX.1-dev's transformer with adapters of rank 64, on the meta device."""
    with torch.device("meta"):
        transformer = Seg2AnyTransformer2DModel(guidance_embeds=True).requires_grad_(False)
    add_adapters(transformer, 64, 64)
    return transformer


def preset(*names, data_set="sacap_1m"):
    files = [str(CONFIGS / f"{name}.yaml") for name in (f"seg2any_{data_set}", *names)]
    return config.load(files)


def test_sizes_are_those_of_flux_and_of_the_published_adapters(flux):
    assert build.parameter_counts(flux) == {"frozen": 11_901_408_320, "default": 343_670_784, "cond": 250_482_688}
    rows = estimate(preset("memory_48gb"), flux, sum(TOKENS), EncoderSizes(), Launch())
    trained = 343_670_784 + 250_482_688
    assert rows["frozen weights"] == 2 * 11_901_408_320
    of_a_double_block = 64 * 230_400  # rank x inputs and outputs of its layers: 153600 of `default`, 76800 of `cond`
    assert (rows["gradients"], rows["optimizer"]) == (4 * trained, 8 * trained)
    assert rows["adapters"] == 4 * trained + 2 * of_a_double_block  # checkpointing keeps one block's copies in bf16


def test_presets_fit_the_cards_they_are_named_after(flux):
    t5, clip, vae = 4_762_310_656, 123_060_480, 83_819_683
    for name, encoders in (("24gb", EncoderSizes()), ("48gb", EncoderSizes()), ("80gb", EncoderSizes(t5 + clip, vae))):
        total = sum(estimate(preset(f"memory_{name}"), flux, sum(TOKENS), encoders, Launch()).values())
        assert total < 0.9 * int(name[:-2]) * 1e9, f"{name}: {total / 1e9:.1f} GB"
    plain = sum(estimate(preset(), flux, sum(TOKENS), EncoderSizes(t5 + clip, vae), Launch()).values())
    assert plain > 24e9


def test_zero_shares_gradients_and_optimizer(flux):
    alone = estimate(preset(), flux, 1, EncoderSizes(), Launch())
    shared = estimate(preset(), flux, 1, EncoderSizes(), Launch(processes=4, sharded=True))
    assert shared["gradients"] * 4 == alone["gradients"] and shared["optimizer"] == alone["optimizer"] * 12 / 8 / 4
    assert shared["frozen weights"] == alone["frozen weights"]


def test_only_blocks_that_isolate_attributes_may_keep_copies_of_keys():
    hard = ConditionSettings("hard", (1, 2))
    assert [most_copies(hard, block) > 0 for block in range(4)] == [False, True, True, False]
    others = (ConditionSettings("base", (1, 2)), ConditionSettings("hard", (1, 2), attention_backend="sdpa"))
    assert not any(most_copies(settings, 1) for settings in others)
    assert (
        kept_per_token(100, 3, False, 2) - kept_per_token(100, 3, False) == 400
    )  # two keys and two values of width 100


def kept_by_autograd(transformer, given):
    """Return the bytes that a forward pass keeps for the backward pass, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in transformer.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tiny_flux.run(transformer, given)
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("double", "single"), [(4, 4), (6, 2)])
def test_estimated_activations_equal_what_autograd_keeps(double, single, checkpointing):
    wide = {"num_layers": double, "num_single_layers": single, "attention_head_dim": 32, "num_attention_heads": 4}
    transformer = tiny_flux.tiny(**wide, axes_dims_rope=(8, 12, 12)).requires_grad_(False)
    add_adapters(transformer, 4, 4)
    transformer.train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    rules = ConditionSettings("hard", (2, 5), attention_backend="sdpa")  # `grouped` copies what the layout says
    given = tiny_flux.condition([tiny_flux.sample(seed, 8, 60) for seed in (0, 1)], rules)
    settings = config.load(["--trainer.train_batch_size=2", "--model.rank=4"])
    settings.trainer.gradient_checkpointing, settings.model.condition = checkpointing, rules
    tokens = given.text.shape[1] + 12 + given.tokens.n_cond
    rows = estimate(settings, transformer, tokens, EncoderSizes(), FP32)
    expected = rows["kept activations"] + rows["attention masks"]
    assert expected == pytest.approx(kept_by_autograd(transformer, given), rel=0.15)


@needs_bitsandbytes
def test_adapters_on_a_4_bit_base_compute_as_on_its_dequantised_weights():
    import bitsandbytes

    def quantise(module):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear):
                quantise(child)
                continue
            layer = bitsandbytes.nn.Linear4bit(
                child.in_features, child.out_features, child.bias is not None, torch.float32, quant_type="nf4"
            )
            layer.weight = bitsandbytes.nn.Params4bit(child.weight.data.clone(), requires_grad=False, quant_type="nf4")
            layer.bias = child.bias
            setattr(module, name, layer)

    quantised = tiny_flux.tiny()
    quantise(quantised)
    quantised.to("cpu")
    plain = tiny_flux.tiny()
    for name, layer in quantised.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(weight)
    given = tiny_flux.condition([tiny_flux.sample(0), tiny_flux.sample(1)])
    outputs = []
    for model in (quantised, plain):
        torch.manual_seed(0)
        add_adapters(model, 3, 6)
        tiny_flux.randomize_adapters(model)
        output = tiny_flux.run(model, given)
        output.square().mean().backward()
        outputs.append((output, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (ours, our_gradients), (theirs, their_gradients) = outputs
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_quantisation_names_the_missing_package(monkeypatch):
    assert build.quantization_config("none", torch.bfloat16) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="nf4 needs bitsandbytes; pip install bitsandbytes"):
        build.quantization_config("nf4", torch.bfloat16)
