"""Adapters: routing against a row by row formula, files against stock diffusers, and what must be refused."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from seg2any.errors import UserError
from seg2any.models.adapters import (
    COND,
    DEFAULT,
    WEIGHTS_FILE,
    AdapterCard,
    add_adapters,
    load_adapters,
    save_adapters,
    trainable_parameters,
)
from seg2any.models.routing import Rows, linear
from tests.tiny_flux import condition, randomize_adapters, run, sample, tiny

STYLE = ["to_q", "to_v", "proj_mlp", "ff.net.2", "x_embedder", "norm_out.linear"]


def adapted(rank: int = 3, alpha: float = 6, **config) -> nn.Module:
    model = tiny(**config)
    add_adapters(model, rank, alpha)
    randomize_adapters(model)
    return model


def add_style(model: nn.Module, weight: float = 1.0) -> None:
    torch.manual_seed(8)
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=STYLE, init_lora_weights=False), "style")
    model.set_adapters(["default", "cond", "style"], [1.0, 1.0, weight])


@pytest.fixture
def given():
    return condition([sample(0), sample(1, n_cond=1)])


def outputs(model: nn.Module, given) -> list[torch.Tensor]:
    """With a condition, and without any."""
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
    text = ("context", "add_", ".norm_")  # what only text passes
    assert found[COND] == {"x_embedder"} | {name for name in everywhere if not any(part in name for part in text)}


@pytest.mark.parametrize("n_cond", [0, 2, 5])
@pytest.mark.parametrize(
    "state", ["active", "disabled", "only style", "merged default", "merged all", "merged, disabled"]
)
def test_rows_choose_their_adapters(state, n_cond):
    """Against W x + sum of the deltas of the adapters of each row, one row at a time."""
    model = adapted()
    add_style(model, 0.3)
    layer, x = model.transformer_blocks[0].attn.to_q, torch.randn(2, 5, 32)
    weight, bias = layer.base_layer.weight.clone(), layer.base_layer.bias.clone()
    delta = {name: layer.get_delta_weight(name).detach() for name in ("default", "cond", "style")}
    active = {"default", "cond", "style"}
    if "merged" in state:
        layer.merge(adapter_names=None if state == "merged all" else ["default"])
    if state == "only style":
        model.set_adapter("style")
        active = {"style"}
    if "disabled" in state:
        model.disable_adapters()
        active = set()

    expected = x @ weight.T + bias
    for row in range(5):
        for name in active & ({"cond"} if row >= 5 - n_cond else {"default", "style"}):
            expected[:, row] += x[:, row] @ delta[name].T
    torch.testing.assert_close(linear(layer, x, Rows(n_cond)), expected, rtol=1e-5, atol=1e-5)


def test_a_branch_may_have_other_adapters():
    model = adapted()
    add_style(model)
    layer, x = model.transformer_blocks[0].attn.to_q, torch.randn(1, 4, 32)
    rows = Rows(2, frozenset({"cond", "style"}))
    both = layer.get_delta_weight("cond") + layer.get_delta_weight("style")
    expected = layer.base_layer(x)
    expected = torch.cat(
        [expected[:, :2] + x[:, :2] @ layer.get_delta_weight("default").T, expected[:, 2:] + x[:, 2:] @ both.T], 1
    )
    torch.testing.assert_close(linear(layer, x, rows), expected, rtol=1e-5, atol=1e-5)


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


def test_without_a_condition_a_style_acts_as_in_stock():
    """Also on layers outside the blocks, which are not ours; `cond` is active and has no row to act on."""
    ours, stock = adapted(), tiny(FluxTransformer2DModel)
    for model in (ours, stock):
        torch.manual_seed(8)
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=STYLE, init_lora_weights=False), "style")
    stock.set_adapters("style", 0.4)
    ours.set_adapters(["style", "cond"], [0.4, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(stock), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["style first", "style last"])
def test_loading_in_any_order_switches_nothing_off(tmp_path, given, order):
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
    from peft.utils import get_peft_model_state_dict

    return {
        "transformer_lora_layers": get_peft_model_state_dict(model, adapter_name="style"),
        "transformer_lora_adapter_metadata": model.peft_config["style"].to_dict(),
    }


def load_style(model: nn.Module, folder) -> None:
    weights, metadata = FluxPipeline.lora_state_dict(str(folder / WEIGHTS_FILE), return_lora_metadata=True)
    model.load_lora_adapter(weights, adapter_name="style", metadata=metadata)


def test_loading_again_replaces_ours_and_leaves_others(tmp_path, given):
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
        assert loaded.dtype == dtype or torch.bfloat16
        assert torch.equal(loaded, full if dtype else full.bfloat16())
    save_adapters(adapted(), tmp_path, AdapterCard(), torch.float16)
    assert {weight.dtype for weight in load_file(tmp_path / COND / WEIGHTS_FILE).values()} == {torch.float16}


def test_exactly_our_adapters_are_trainable_in_float32():
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


def test_new_adapters_change_nothing(given):
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


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"alora_invocation_tokens": [1]},
        {"bias": "all"},
        {"modules_to_save": ["proj_out"]},
    ],
    ids=str,
)
def test_adapters_that_are_more_than_a_delta_are_refused(options):
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(r=2, target_modules=["to_q"])
    for option, value in options.items():  # after construction: some values ask for more settings there
        setattr(config, option, value)
    with pytest.raises(UserError, match=f"'odd' uses {next(iter(options))}.*plain LoRA"):
        model.add_adapter(config, "odd")
    metadata = {f"transformer.{key}": value for key, value in options.items()}
    weights = {"transformer.x_embedder.lora_A.weight": torch.ones(2, 16)}
    with pytest.raises(UserError, match="plain LoRA"):
        model.load_lora_adapter(weights, adapter_name="odd", metadata=metadata)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("key", ["lora_magnitude_vector", "dora_scale", "lokr_w1"])
def test_files_of_other_methods_are_refused(key):
    with pytest.raises(UserError, match="plain LoRA"):
        tiny().load_lora_adapter({f"transformer.x_embedder.{key}": torch.ones(2)}, adapter_name="odd")


def test_broken_missing_and_foreign_folders(tmp_path):
    save_adapters(adapted(), tmp_path / "good", AdapterCard())
    with pytest.raises(UserError, match="no default/"):
        load_adapters(tiny(), tmp_path)
    for config in ({"num_layers": 1}, {"in_channels": 8}):
        with pytest.raises(UserError, match="another model"):
            load_adapters(tiny(**config), tmp_path / "good")
    file = tmp_path / "good" / COND / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    model = tiny()
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_adapters(model, tmp_path / "good")
    assert not getattr(model, "peft_config", None), "nothing is loaded if one file is broken"


def test_the_card_travels_in_both_places(tmp_path):
    model = adapted()
    card = AdapterCard("local/model", "base", (1, 2), resolution=256, rank=3, alpha=6, dataset="shapes", step=7)
    save_adapters(model, tmp_path, card)
    read = load_adapters(tiny(), tmp_path)
    assert read == replace(card, seg2any_version=read.seg2any_version) and not read.assumed
    assert read.rules().method == "base" and read.rules().hard_attn_block_range == (1, 2)
    (tmp_path / "adapter.json").unlink()
    assert load_adapters(tiny(), tmp_path) == read


def test_a_published_folder_gets_the_published_defaults_and_says_so(tmp_path):
    save_adapters(adapted(), tmp_path, AdapterCard(step=7))
    (tmp_path / "adapter.json").unlink()
    for name in (DEFAULT, COND):
        file = tmp_path / name / WEIGHTS_FILE
        save_file(load_file(file), file, {"format": "pt"})
    card = load_adapters(tiny(), tmp_path)
    assert card == AdapterCard(assumed=True) and card.rules().method == "hard"


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"step": "many"}', '{"attention_mask_method": "soft"}', '{"resolution": null}']
)
def test_a_broken_card_is_one_clear_line(tmp_path, text):
    save_adapters(adapted(), tmp_path, AdapterCard())
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(UserError, match="adapter.json: not an adapter card") as caught:
        load_adapters(tiny(), tmp_path)
    assert "\n" not in str(caught.value)


def test_cards_of_newer_versions_are_read():
    text = json.dumps(json.loads(AdapterCard(step=3).to_json()) | {"invented_later": 1})
    assert AdapterCard.from_json(text, "card").step == 3
