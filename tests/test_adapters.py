"""Test adapters: their layers, their files (also in stock diffusers), and several at once."""

import json
import time

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from seg2any.adapters.files import (
    COND,
    DEFAULT,
    WEIGHTS_FILE,
    AdapterCard,
    add_adapters,
    load_adapters,
    save_adapters,
    trainable_parameters,
)
from seg2any.system.errors import UserError
from tests.tiny_flux import adapted, add_style, condition, run, sample, tiny


@pytest.fixture
def given():
    return condition([sample(0), sample(1, n_cond=1)])


def outputs(model: nn.Module, given) -> list[torch.Tensor]:
    """Run the model with a condition and without one."""
    with torch.no_grad():
        return [run(model, given), run(model)]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 10)


def test_default_is_on_every_linear_of_the_blocks_and_cond_where_condition_tokens_pass():
    plain = tiny()
    stacks = ("transformer_blocks.", "single_transformer_blocks.")
    everywhere = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n.startswith(stacks)}
    model = adapted()
    found = {a: {n for n, m in model.named_modules() if a in getattr(m, "lora_A", {})} for a in (DEFAULT, COND)}
    assert found[DEFAULT] == everywhere
    text = ("context", "add_", ".norm_")  # layers that only text passes
    assert found[COND] == {"x_embedder"} | {name for name in everywhere if not any(part in name for part in text)}


def test_a_third_adapter_keeps_working_and_keeps_its_weight(given):
    model = adapted()
    before = outputs(model, given)
    add_style(model, 0.0)
    assert_same(outputs(model, given), before)
    model.set_adapters(["default", "cond", "style"], [1.0, 1.0, 0.7])
    layer = model.single_transformer_blocks[0].attn.to_q
    with_style = outputs(model, given)
    assert layer.scaling == {"default": 2.0, "cond": 2.0, "style": 0.7 * 4 / 2}
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(with_style, before, strict=True))
    assert_same(outputs(model, given), with_style)


@pytest.mark.parametrize("order", ["style first", "style last"])
def test_loading_in_any_order_leaves_all_adapters_active(tmp_path, given, order):
    source = adapted()
    add_style(source)
    expected = outputs(source, given)
    save_adapters(source, tmp_path, AdapterCard())
    FluxPipeline.save_lora_weights(tmp_path / "style", **style_layers(source))

    model = tiny()
    loads = [lambda: load_adapters(model, tmp_path), lambda: load_style(model, tmp_path / "style")]
    for load in reversed(loads) if order == "style first" else loads:
        load()
    assert set(model.active_adapters()) == {"default", "cond", "style"}
    assert_same(outputs(model, given), expected)


def style_layers(model: nn.Module) -> dict:
    return {
        "transformer_lora_layers": get_peft_model_state_dict(model, adapter_name="style"),
        "transformer_lora_adapter_metadata": model.peft_config["style"].to_dict(),
    }


def load_style(model: nn.Module, folder) -> None:
    weights, metadata = FluxPipeline.lora_state_dict(str(folder / WEIGHTS_FILE), return_lora_metadata=True)
    model.load_lora_adapter(weights, adapter_name="style", metadata=metadata)


def test_loading_again_replaces_default_and_cond_and_leaves_others(tmp_path, given):
    first, second = adapted(), adapted(rank=2, alpha=1)
    save_adapters(second, tmp_path, AdapterCard())
    add_style(first, 0.5)
    add_style(second, 0.5)
    load_adapters(first, tmp_path)
    assert first.x_embedder.scaling["style"] == second.x_embedder.scaling["style"] == 1.0
    assert_same(outputs(first, given), outputs(second, given))


@pytest.mark.parametrize("rank, alpha", [(3, 3), (3, 12), (4, 1.0)])
def test_rank_and_alpha_survive_the_file(tmp_path, given, rank, alpha):
    source, model = adapted(rank, alpha), tiny()
    save_adapters(source, tmp_path, AdapterCard())
    card = load_adapters(model, tmp_path)
    assert (card.rank, card.alpha) == (rank, alpha)
    assert_same(outputs(model, given), outputs(source, given))
    again = tmp_path / "again"
    save_adapters(model, again, card)
    for name in (DEFAULT, COND):
        a, b = (load_file(folder / name / WEIGHTS_FILE) for folder in (tmp_path, again))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_stock_diffusers_reads_our_file_with_its_alpha(tmp_path):
    source, stock = adapted(3, 12), tiny(FluxTransformer2DModel)
    save_adapters(source, tmp_path, AdapterCard())
    weights, metadata = FluxPipeline.lora_state_dict(str(tmp_path / DEFAULT / WEIGHTS_FILE), return_lora_metadata=True)
    stock.load_lora_adapter(weights, adapter_name="default", metadata=metadata)
    with torch.no_grad():
        torch.testing.assert_close(run(stock), run(source), rtol=1e-5, atol=1e-5)


def test_16_bit_files_and_float32_copies_on_a_16_bit_model(tmp_path):
    save_adapters(adapted(), tmp_path, AdapterCard())
    full = load_file(tmp_path / COND / WEIGHTS_FILE)["transformer.x_embedder.lora_B.weight"]
    for dtype in (None, torch.float32):
        model = tiny().bfloat16()
        load_adapters(model, tmp_path, dtype)
        loaded = model.x_embedder.lora_B["cond"].weight
        assert loaded.dtype == (dtype or torch.bfloat16)
        assert torch.equal(loaded, full if dtype else full.bfloat16())
    save_adapters(adapted(), tmp_path, AdapterCard(), torch.float16)
    assert {weight.dtype for weight in load_file(tmp_path / COND / WEIGHTS_FILE).values()} == {torch.float16}


def test_only_default_and_cond_are_trainable_and_in_float32():
    model = tiny().bfloat16()
    add_adapters(model, 2, is_use_cond_token=False)
    assert set(model.peft_config) == {DEFAULT}
    model = tiny().bfloat16()
    add_adapters(model, 2)
    add_style(model)
    parameters = trainable_parameters(model)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(parameters) == len(names) and all(".default." in name or ".cond." in name for name in names)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def test_a_folder_without_condition_adapter_is_used_without_condition_tokens(tmp_path):
    model = tiny()
    add_adapters(model, 2, is_use_cond_token=False)
    save_adapters(model, tmp_path, AdapterCard().without_condition())
    assert not load_adapters(tiny(), tmp_path).condition.is_use_cond_token
    save_adapters(model, tmp_path, AdapterCard())
    with pytest.raises(UserError, match="cond/"):
        load_adapters(tiny(), tmp_path)
    _strip_cards(tmp_path)
    published = load_adapters(tiny(), tmp_path)
    assert published.assumed and not published.condition.is_use_cond_token


def test_saving_removes_an_earlier_cond_and_refuses_a_model_without_adapters(tmp_path):
    model = adapted()
    save_adapters(model, tmp_path, AdapterCard())
    alone, again = tiny(), tiny()
    add_adapters(alone, 2, is_use_cond_token=False)
    save_adapters(alone, tmp_path, AdapterCard().without_condition())
    load_adapters(again, tmp_path)
    assert list(again.peft_config) == [DEFAULT]
    model.unload_lora()
    for bare in (model, tiny()):
        with pytest.raises(UserError, match="'default'"):
            save_adapters(bare, tmp_path / "none", AdapterCard())
    assert not (tmp_path / "none").exists()


def _strip_cards(folder) -> None:
    """Remove the cards, so that the folder holds only weights, like the published ones."""
    (folder / "adapter.json").unlink()
    file = folder / DEFAULT / WEIGHTS_FILE
    save_file(load_file(file), file)


def test_published_start_is_uniform_and_gaussian_is_offered():
    spans = []
    for start in (True, "gaussian"):
        model = tiny()
        add_adapters(model, 8, init_lora_weights=start)
        downs = [p.detach() / p.std() for n, p in model.named_parameters() if ".lora_A." in n]
        spans.append(max(float(p.abs().max()) for p in downs))
    assert spans[0] < 1.9 < 2.5 < spans[1]  # a uniform distribution ends at sqrt(3) standard deviations


def test_new_adapters_do_not_change_the_output(given):
    model = tiny()
    before = outputs(model, given)
    add_adapters(model, 2, 5)
    assert_same(outputs(model, given), before, 1e-6)


def test_disabled_and_merged(given):
    model, plain = adapted(), tiny()
    expected = outputs(model, given)
    model.disable_adapters()
    assert_same(outputs(model, given), outputs(plain, given), 1e-6)
    model.enable_adapters()
    model.fuse_lora(adapter_names=["default"])
    assert_same(outputs(model, given), expected)
    model.unfuse_lora()
    assert_same(outputs(model, given), expected)


def test_broken_missing_and_foreign_folders(tmp_path):
    save_adapters(adapted(), tmp_path / "good", AdapterCard())
    with pytest.raises(UserError, match="default/"):
        load_adapters(tiny(), tmp_path)
    for config in ({"num_layers": 1}, {"in_channels": 8}):
        with pytest.raises(UserError, match="another model"):
            load_adapters(tiny(**config), tmp_path / "good")
    file = tmp_path / "good" / COND / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    model = tiny()
    with pytest.raises(UserError, match=WEIGHTS_FILE):
        load_adapters(model, tmp_path / "good")
    assert not getattr(model, "peft_config", None), "nothing is loaded if one file is broken"


A_KEY, B_KEY = (f"transformer.x_embedder.lora_{matrix}.weight" for matrix in "AB")


def _without_b(weights, metadata):
    del weights[B_KEY]


def _without_a(weights, metadata):
    del weights[A_KEY]


def _of_another_rank(weights, metadata):
    weights[A_KEY] = weights[A_KEY][:-1].contiguous()


def _one_axis(weights, metadata):
    weights[B_KEY] = weights[B_KEY][0].contiguous()


def _broken_json(weights, metadata):
    metadata[LORA_ADAPTER_METADATA_KEY] = "{"


def _no_settings(weights, metadata):
    metadata[LORA_ADAPTER_METADATA_KEY] = "[]"


def _other_rank_in_metadata(weights, metadata):
    config = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(config | {"transformer.r": 17})


def _rank_in_words(weights, metadata):
    config = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(config | {"transformer.r": "many"})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_b, B_KEY),
        (_without_a, A_KEY),
        (_of_another_rank, f"{A_KEY} has rank 2, {B_KEY} has rank 3"),
        (_one_axis, B_KEY),
        (_broken_json, LORA_ADAPTER_METADATA_KEY),
        (_no_settings, LORA_ADAPTER_METADATA_KEY),
        (_rank_in_words, "metadata"),
        (_other_rank_in_metadata, "metadata"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, damage, named):
    save_adapters(adapted(), tmp_path, AdapterCard())
    file = tmp_path / COND / WEIGHTS_FILE
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    damage(weights, metadata)
    save_file(weights, file, metadata)
    with pytest.raises(UserError) as caught:
        load_adapters(tiny(), tmp_path)
    assert str(caught.value).startswith(f"{file}: ") and named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_alpha": "64"}, "alpha is '64'"),
        ({"lora_alpha": float("nan")}, "alpha is nan"),
        ({"lora_alpha": 1e300}, "alpha is 1e"),
        ({"alpha_pattern": {"(.*.*.*.*.*.*.*.*.*.*.*.*)*x": 3}}, "which is no layer"),
        ({"alpha_pattern": {"to_q": None}}, "alpha is None"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        ({"lora_dropout": 1.0}, "lora_dropout is"),
        ({"r": 400_000}, "says rank 400000"),
        ({"r": [3]}, "r is"),
    ],
)
def test_of_foreign_metadata_only_checked_numbers_count(tmp_path, change, said):
    save_adapters(adapted(), tmp_path, AdapterCard())
    describe(tmp_path / DEFAULT / WEIGHTS_FILE, **change)
    with pytest.raises(UserError, match=said) as caught:
        load_adapters(tiny(), tmp_path)
    assert "\n" not in str(caught.value)


def test_foreign_metadata_choose_no_layers_and_no_code(tmp_path):
    """An expression that matches for hours, a module of the folder, and options of peft that nobody asked for."""
    save_adapters(adapted(3, 6.0), tmp_path, AdapterCard())
    file = tmp_path / DEFAULT / WEIGHTS_FILE
    describe(
        file, target_modules="(.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*)*\\Zx", megatron_core="code", init_lora_weights="pissa"
    )
    model = tiny()
    start = time.process_time()
    load_adapters(model, tmp_path)
    assert time.process_time() - start < 10
    config = model.peft_config[DEFAULT]
    found, wanted = (
        {name for name, layer in one.named_modules() if DEFAULT in getattr(layer, "lora_A", ())}
        for one in (model, adapted(3))
    )
    assert found == wanted and (config.r, config.lora_alpha) == (3, 6)
    assert config.megatron_core == "megatron.core" and config.init_lora_weights is True


def describe(file, **change) -> None:
    """Change peft's configuration in the metadata of a file of adapters."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata[LORA_ADAPTER_METADATA_KEY]) | {
        f"transformer.{key}": value for key, value in change.items()
    }
    save_file(load_file(file), file, metadata | {LORA_ADAPTER_METADATA_KEY: json.dumps(config)})
