"""Compare adapters on their rows with a formula applied row by row, and refuse other methods."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from seg2any.adapters.routing import Rows, linear
from seg2any.system.errors import UserError
from tests.tiny_flux import STYLE, adapted, add_style, run, tiny


@pytest.mark.parametrize("n_cond", [0, 2, 5])
@pytest.mark.parametrize(
    "state", ["active", "disabled", "only style", "merged default", "merged all", "merged, disabled"]
)
def test_rows_choose_their_adapters(state, n_cond):
    """Compare with W x + the deltas of the row's adapters, one row at a time."""
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


@pytest.mark.parametrize("trains", [True, False])
def test_trained_adapters_compute_in_the_precision_of_the_base(trains):
    model = adapted()
    layer, x = model.transformer_blocks[0].attn.to_q, torch.randn(2, 5, 32).bfloat16()
    layer.base_layer.bfloat16()
    low = {path: p.detach().bfloat16().float() for path, p in layer.named_parameters() if "lora_" in path}
    expected = layer.base_layer(x).float()
    for name, part in (("default", slice(0, 3)), ("cond", slice(3, 5))):
        inner = x[:, part].float() @ low[f"lora_A.{name}.weight"].T * layer.scaling[name]
        expected[:, part] += inner @ low[f"lora_B.{name}.weight"].T
    with torch.set_grad_enabled(trains), Products() as products:
        y = linear(layer, x, Rows(2))
    assert products.dtypes == {torch.bfloat16}
    torch.testing.assert_close(y.float(), expected, rtol=1.6e-2, atol=2e-3)
    if trains:
        y.float().square().sum().backward()
        assert {p.grad.dtype for p in layer.parameters() if p.requires_grad} == {torch.float32}


class Products(TorchDispatchMode):
    """Collects the precisions in which matrix products compute."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name.split("::")[1].rstrip("_") in ("mm", "addmm", "bmm", "baddbmm"):
            self.dtypes |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return func(*args, **(kwargs or {}))


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


def test_without_a_condition_a_style_acts_as_in_stock():
    """A style also acts on layers outside the blocks; `cond` is active but has no rows."""
    ours, stock = adapted(), tiny(FluxTransformer2DModel)
    for model in (ours, stock):
        torch.manual_seed(8)
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=STYLE, init_lora_weights=False), "style")
    stock.set_adapters("style", 0.4)
    ours.set_adapters(["style", "cond"], [0.4, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(stock), rtol=1e-5, atol=1e-5)


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
        {"lora_bias": True},
        {"modules_to_save": ["proj_out"]},
    ],
    ids=str,
)
def test_adapters_that_are_more_than_a_delta_are_refused(options):
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(r=2, target_modules=["to_q"])
    for option, value in options.items():  # set later, because the constructor requires more settings for some values
        setattr(config, option, value)
    with pytest.raises(UserError, match=f"'odd' uses {next(iter(options))}"):
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
