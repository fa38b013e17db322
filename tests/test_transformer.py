"""Compare the transformer with stock diffusers, with single samples, and with its rules."""

import dataclasses
import inspect

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks._helpers import TransformerBlockRegistry

from seg2any.attention.attend import attention_weights
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.errors import UserError
from tests.tiny_flux import CONFIG, RULES, adapted, condition, inputs, plain_inputs, run, sample, tiny


@pytest.fixture
def model():
    return adapted()


@pytest.mark.same_numbers("without a layout's condition: ours and stock diffusers | equal")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guidance", [True, False])
def test_without_a_condition_it_is_bit_for_bit_the_stock_model(dtype, guidance):
    stock, ours = (
        tiny(cls, guidance_embeds=guidance).to(dtype) for cls in (FluxTransformer2DModel, Seg2AnyTransformer2DModel)
    )
    arguments = {name: value if "ids" in name else value.to(dtype) for name, value in plain_inputs().items()}
    if not guidance:
        del arguments["guidance"]
    with torch.no_grad():
        assert torch.equal(stock(**arguments).sample, ours(**arguments).sample)


def test_without_a_condition_gradients_are_the_stock_models():
    grads = []
    for cls in (FluxTransformer2DModel, Seg2AnyTransformer2DModel):
        net = tiny(cls)
        run(net).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-8)


def test_overflow_in_float16_is_clipped_as_in_stock():
    outputs = []
    for cls in (FluxTransformer2DModel, Seg2AnyTransformer2DModel):
        net = tiny(cls, num_layers=1, num_single_layers=1).half()
        double, single = net.transformer_blocks[0], net.single_transformer_blocks[0]
        for branch, modulation in ((double.ff_context.net[2], double.norm1_context), (single.proj_out, single.norm)):
            branch.bias.data.fill_(6e4)
            modulation.linear.bias.data.fill_(4.0)
        seen = []
        double.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0]))
        single.register_forward_hook(lambda _, __, out, seen=seen: seen.extend(out))
        with torch.no_grad():
            net(**{name: value if "ids" in name else value.half() for name, value in plain_inputs().items()})
        assert seen[0].max() == 65504 and seen[2].max() == 65504 and not any(x.isinf().any() for x in seen)
        outputs.append(seen)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("repeat", [False, True])
def test_controlnet_residuals_act_as_in_stock(repeat):
    generator = torch.Generator().manual_seed(5)
    residuals = [torch.randn(2, 12, 32, generator=generator) for _ in range(3)]
    extra = {
        "controlnet_block_samples": residuals[:2] if repeat else residuals[:1],
        "controlnet_single_block_samples": residuals[1:],
        "controlnet_blocks_repeat": repeat,
    }
    with torch.no_grad():
        expected = run(tiny(FluxTransformer2DModel), **extra)
        assert torch.equal(expected, run(tiny(), **extra))
        assert not torch.equal(expected, run(tiny()))


def test_stock_folders_load_and_adopt_changes_no_weight(tmp_path):
    stock = tiny(FluxTransformer2DModel, seed=3)
    stock.save_pretrained(tmp_path)
    ours = Seg2AnyTransformer2DModel.from_pretrained(tmp_path).eval()
    pointers = {name: weight.data_ptr() for name, weight in stock.named_parameters()}
    with torch.no_grad():
        expected = run(stock)
        adopted = Seg2AnyTransformer2DModel.adopt(stock)
        assert adopted is stock and Seg2AnyTransformer2DModel.adopt(adopted) is adopted
        assert torch.equal(run(ours), expected) and torch.equal(run(adopted), expected)
        assert run(adopted, condition([sample(0)])).isfinite().all()
    assert pointers == {name: weight.data_ptr() for name, weight in adopted.named_parameters()}


def test_diffusers_sees_a_flux_model(tmp_path):
    ours = tiny()
    assert inspect.signature(Seg2AnyTransformer2DModel.__init__) == inspect.signature(FluxTransformer2DModel.__init__)
    assert Seg2AnyTransformer2DModel.from_config(CONFIG).config.num_layers == CONFIG["num_layers"]
    for block in (ours.transformer_blocks[0], ours.single_transformer_blocks[0]):
        assert type(block).__name__ in ours._no_split_modules and type(block).__name__ in ours._repeated_blocks
        metadata = TransformerBlockRegistry.get(type(block))
        assert (metadata.return_hidden_states_index, metadata.return_encoder_hidden_states_index) == (1, 0)
    ours.save_pretrained(tmp_path)
    assert torch.equal(run(Seg2AnyTransformer2DModel.from_pretrained(tmp_path).eval()), run(ours))


@pytest.mark.same_numbers("a layout in a batch, and alone | 1e-4")
def test_a_batch_of_different_layouts_equals_one_by_one(model):
    samples = [sample(0, 2, 4), sample(1, 0, 2), sample(2, 5, 0), sample(3, 1, 1)]
    for rules in (RULES, dataclasses.replace(RULES, cond_attention="isolated", cond2image_attention_weight=0.4)):
        with torch.no_grad():
            batch = run(model, condition(samples, rules))
            for together, one in zip(batch, samples, strict=True):
                torch.testing.assert_close(together, run(model, condition([one], rules))[0], rtol=1e-5, atol=2e-5)


def test_without_condition_tokens_cond_has_no_say(model):
    """Without condition rows, or with weight 0, the adapter `cond` changes nothing."""
    cut = dataclasses.replace(RULES, cond2image_attention_weight=0.0)
    conditions = [
        None,
        condition([sample(0, n_cond=None)]),
        condition([sample(0, n_cond=0)]),
        condition([sample(0)], cut),
    ]
    with torch.no_grad():
        before = [run(model, given) for given in conditions]
        for name, parameter in model.named_parameters():
            if ".cond." in name:
                parameter.data.normal_(std=3)
        after = [run(model, given) for given in conditions]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for other in before[2:]:
        torch.testing.assert_close(before[1], other, rtol=1e-5, atol=2e-5)


def test_condition_tokens_and_their_adapter_matter(model):
    with torch.no_grad():
        one, fewer = condition([sample(0)]), condition([sample(0, n_cond=2)])
        before = run(model, one)
        assert not torch.allclose(before, run(model, fewer), atol=1e-3)
        model.x_embedder.lora_B["cond"].weight.data.normal_()
        assert not torch.allclose(before, run(model, one), atol=1e-3)


def test_isolated_condition_rows_do_not_depend_on_image_text_or_time(model):
    rows = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.register_forward_hook(lambda _, __, out: rows.append(out[1][:, -3:]))
    for cond_attention, same in (("isolated", True), ("bidirectional", False)):
        given = condition([sample(0)], dataclasses.replace(RULES, cond_attention=cond_attention))
        rows.clear()
        with torch.no_grad():
            run(model, given)
            run(model, given, hidden_states=torch.ones(1, 12, 16), timestep=torch.tensor([0.1]))
        first, second = rows[:4], rows[4:]
        assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)][1:] == [same] * 3


def test_attributes_are_isolated_where_the_rules_say_so(model):
    """With AIA in all blocks an entity's tokens never depend on another entity's caption.

    With SAA they do from the second block on, through other image tokens.
    """
    masks = sample(0).masks * 0
    masks[0, 0], masks[1, 1] = True, True
    one = dataclasses.replace(sample(0, n_cond=None), masks=masks)
    own = torch.arange(3)  # image tokens of entity 0: the first row of the grid
    start = sum(one.text_lengths[:2])
    for rules, leaks in ((ConditionSettings("hard", (0, 3)), False), (ConditionSettings("base"), True)):
        given = condition([one], rules)
        changed = dataclasses.replace(given, text=given.text.clone())
        changed.text[:, start:] += 1
        with torch.no_grad():
            difference = (run(model, given) - run(model, changed))[0, own].abs().max()
        assert (difference > 1e-4) == leaks


@pytest.mark.same_numbers("gradient checkpointing, and all activations kept | equal")
@pytest.mark.parametrize("n_cond", [3, 0, None])
def test_gradient_checkpointing_changes_nothing(n_cond):
    results = []
    for checkpointing in (False, True):
        net = adapted()
        if checkpointing:
            net.enable_gradient_checkpointing()
        output = run(net, condition([sample(0, n_cond=n_cond), sample(1, n_cond=n_cond)]))
        output.square().mean().backward()
        results.append((output, {name: p.grad for name, p in net.named_parameters() if p.requires_grad}))
    assert torch.equal(results[0][0], results[1][0])
    for name, grad in results[0][1].items():
        assert (grad is None) == (results[1][1][name] is None)
        assert grad is None or torch.equal(grad, results[1][1][name]), name
        assert grad is not None or n_cond is None, f"{name}: padding must keep the gradient alive"


def test_base_weights_in_bfloat16_take_float32_adapters(model):
    given = condition([sample(0)])
    with torch.no_grad():
        expected = run(model, given)
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        image = inputs(1)["hidden_states"].bfloat16()
        low = run(model, given.to("cpu", torch.bfloat16), hidden_states=image)
    assert low.dtype == torch.bfloat16
    assert (low - expected).norm() < 0.05 * expected.norm()


def test_scale_scales_the_adapters_for_one_call(model):
    given = condition([sample(0)])
    plain = tiny()
    with torch.no_grad():
        full, none = run(model, given), run(plain, given)
        scaled = model(
            **inputs(1),
            encoder_hidden_states=given.text,
            pooled_projections=given.pooled,
            joint_attention_kwargs={"condition": given, "scale": 1e-4},
            return_dict=False,
        )[0]
        torch.testing.assert_close(scaled, none, rtol=1e-2, atol=1e-2)
        assert not torch.allclose(full, none, atol=1e-2)
        torch.testing.assert_close(run(model, given), full, rtol=1e-6, atol=1e-7)


def test_unusable_arguments_are_refused(model):
    given = condition([sample(0)])
    with pytest.raises(UserError, match="ip_adapter_image_embeds"):
        run(model, joint_attention_kwargs={"ip_adapter_image_embeds": []})
    with pytest.raises(UserError, match="image. tokens"):
        run(model, given, hidden_states=torch.ones(1, 11, 16))
    with pytest.raises(UserError, match="cond. tokens"):
        dataclasses.replace(given, cond=None)
    with pytest.raises(UserError, match="flash"):
        model.set_attention_backend("flash")
    with pytest.raises(UserError, match="grouped"):
        model.set_attention_backend("grouped")
    model.set_attention_backend("native")


def test_the_caller_keeps_its_arguments(model):
    given = condition([sample(0)])
    kwargs = {"condition": given, "scale": 0.5}
    run(model, given, joint_attention_kwargs=kwargs)
    assert kwargs == {"condition": given, "scale": 0.5}


def test_the_tap_sees_every_block_before_its_attention_and_changes_nothing():
    model, given, seen = adapted(), condition([sample(0, 2, 4), sample(1, 3, 2)]), []
    with torch.no_grad():
        expected = run(model, given)
        assert torch.equal(run(model, given, tap=lambda *call: seen.append(call)), expected)
    assert [call[0] for call in seen] == list(range(4))
    for block, query, key, pattern in seen:
        assert query.shape == key.shape == (2, given.tokens.kind.shape[1], 2, 16)
        assert pattern.attention is RULES.attention_of(block)
        weights = attention_weights(query[:, :3], key, pattern.rows(slice(3)))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert torch.equal(weights[:, :1] > 0, pattern.mask()[:, :, :3].isfinite())
