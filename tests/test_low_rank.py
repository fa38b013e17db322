"""Compare low-rank products with the formula, and check that no kept stack survives a change of its weights."""

import copy
import gc

import pytest
import torch

from seg2any.adapters.fold import fold, unfold
from seg2any.adapters.low_rank import _stacks, forget
from seg2any.adapters.routing import Rows, linear, linears
from tests.tiny_flux import adapted, add_style

ROWS = Rows(2)
QKV = ("to_q", "to_k", "to_v")


def layers_of(model):
    return [getattr(model.transformer_blocks[0].attn, name) for name in QKV]


def formula(layer, x, rows=ROWS):
    """Compute (W + sum of s B A) x row by row, in float64, from the weights as they are now."""
    n_rows = x.shape[1] - rows.n_cond
    weight = layer.base_layer.weight.double()
    folded = getattr(layer, "folded", {})
    for name, factor in folded.items():
        weight = weight - factor * layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
    y = x.double() @ weight.T + layer.base_layer.bias.double()
    for name in layer.lora_A:
        if name not in layer.active_adapters:
            continue
        part = slice(n_rows, None) if name == "cond" else slice(0, n_rows)
        delta = layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
        y[:, part] += layer.scaling[name] * x[:, part].double() @ delta.T
    return y.float()


def check(model, x):
    """Compare all three layers with the formula, each alone and together."""
    layers = layers_of(model)
    close = {"rtol": 2e-2, "atol": 2e-2} if x.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        for layer, y in zip(layers, linears(layers, x, ROWS), strict=True):
            torch.testing.assert_close(y.float(), formula(layer, x), **close)
            torch.testing.assert_close(y, linear(layer, x, ROWS), **close)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", ["routed", "folded", "with a style", "folded with a style"])
def test_layers_with_one_input_compute_the_formula(state, dtype, batch):
    model = adapted(rank=3, alpha=5).to(dtype)
    if "style" in state:
        add_style(model, 0.6)
        model.to(dtype)
    if "folded" in state:
        fold(model)
    x = torch.randn(batch, 5, 32, generator=torch.Generator().manual_seed(batch)).to(dtype)
    for _ in range(2):  # the second time with kept stacks
        check(model, x)
    assert any(half in _stacks for half in layers_of(model)[2].lora_A.values())


def overwrite(model):
    with torch.no_grad():
        model.transformer_blocks[0].attn.to_k.lora_B["cond"].weight.normal_()


def replace(model):
    weight = model.transformer_blocks[0].attn.to_q.lora_A["default"].weight
    for _ in range(3):  # memory that was freed may come back at its old address
        weight.data = torch.randn(weight.shape).to(weight)


def reload(model):
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items() if "lora" in name}, False)


def exchange(model):
    half = model.transformer_blocks[0].attn.to_v.lora_A["cond"]
    half.weight = torch.nn.Parameter(torch.randn_like(half.weight))


def train(model):
    """Take a step of an optimizer that writes through `data`, as some of DeepSpeed's do."""
    x = torch.randn(1, 5, 32).to(model.dtype)
    sum(y.square().sum() for y in linears(layers_of(model), x, ROWS)).backward()
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.requires_grad:
            parameter.data.sub_(parameter.grad.sign() * 0.1)
    model.zero_grad()


def swap(model):
    weights = {name: weight + 0.2 for name, weight in model.state_dict().items() if ".style." in name}
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])  # without a trace, as in peft's hot swap of compiled models
    forget(model)


CHANGES = {
    "overwritten": overwrite,
    "replaced": replace,
    "reloaded": reload,
    "exchanged": exchange,
    "trained": train,
    "swapped": swap,
    "rescaled": lambda model: model.set_adapters(["default", "cond"], [0.3, 1.7]),
    "halved": lambda model: model.bfloat16(),
    "left out": lambda model: model.set_adapter("cond"),
    "joined": lambda model: add_style(model, 0.5),
    "moved": lambda model: model.to("meta").to_empty(device="cpu").load_state_dict(adapted().state_dict(), False),
}


@pytest.mark.parametrize("is_folded", [False, True], ids=["routed", "folded"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_an_adapter_is_seen(change, is_folded):
    model, x = adapted(), torch.randn(2, 5, 32)
    if is_folded:
        if change in ("replaced", "reloaded", "trained", "moved"):
            pytest.skip("changes `default`, which a folded model does not allow")
        fold(model)
    check(model, x)
    CHANGES[change](model)
    check(model, x.to(model.dtype))
    if is_folded and change != "joined":
        unfold(model)
        check(model, x.to(model.dtype))


def test_stacks_go_with_their_model_and_copies_have_their_own():
    gc.collect()
    before = len(_stacks)
    model, x = adapted(), torch.randn(1, 5, 32)
    check(model, x)
    assert len(_stacks) > before
    twin = copy.deepcopy(model)
    with torch.no_grad():
        layers_of(twin)[0].lora_A["default"].weight.data.mul_(3)
    check(twin, x), check(model, x)
    model.to(torch.bfloat16)
    forget(twin)
    assert len(_stacks) == before
    check(model, x.bfloat16())
    del model
    gc.collect()
    assert len(_stacks) == before


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("n_cond", [0, 2])
def test_gradients_are_those_of_finite_differences(n_cond, batch):
    model = adapted().double()
    add_style(model, 0.4)
    layer = model.double().transformer_blocks[0].attn.to_q
    for half in (*layer.lora_A.values(), *layer.lora_B.values()):
        half.weight.data.normal_(std=0.2)
    names = ["default", "style"] + ["cond"] * bool(n_cond)
    weights = [half[name].weight for name in names for half in (layer.lora_A, layer.lora_B)]
    x = torch.randn(batch, 4, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: linear(layer, x, Rows(n_cond))[..., ::7], (x, *weights), atol=1e-6)


def test_gradients_with_dropout_are_those_of_its_own_mask():
    model = adapted()
    layer = model.transformer_blocks[0].attn.to_q
    layer.lora_dropout["default"] = torch.nn.Dropout(0.5).train()
    x = torch.ones(1, 4, 32, requires_grad=True)
    torch.manual_seed(3)
    y = linear(layer, x, ROWS)
    torch.manual_seed(3)
    seen = torch.nn.functional.dropout(x[:, :2], 0.5)
    delta = {name: layer.get_delta_weight(name) for name in ("default", "cond")}
    expected = layer.base_layer(x) + torch.cat([seen @ delta["default"].T, x[:, 2:] @ delta["cond"].T], 1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), [x, *layer.lora_A.parameters()]) for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
