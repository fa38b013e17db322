"""Compare quantised bases with unquantised ones; check offloading and refusals."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from torch import nn

from seg2any import Seg2AnyPipeline
from seg2any.adapters import files as adapters
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.generate import memory, memory_modes, pipeline
from seg2any.generate.memory_modes import NOT_IN_TRAINING
from seg2any.system.errors import UserError
from seg2any.training import config
from tests import tiny_flux
from tests.bfl_files import bfl_weights, save
from tests.tiny_pipeline import CARD, CLOSE, MANY, ONE, THREE, fresh_pipe, latents_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
QUANTIZERS = {"int8": "BnB8BitDiffusersQuantizer", "nf4": "BnB4BitDiffusersQuantizer"}
needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def tiny_model(stock_pipe, tmp_path_factory):
    """Save a pipeline whose layers have widths that bitsandbytes takes: multiples of 64."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel.from_config({**stock_pipe.transformer.config, **sizes})
    folder = tmp_path_factory.mktemp("model")
    FluxPipeline(**{**stock_pipe.components, "transformer": transformer}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tiny_model, tmp_path_factory):
    """Save adapters with large weights."""
    folder, pipe = tmp_path_factory.mktemp("lora"), Seg2AnyPipeline.from_pretrained(tiny_model)
    adapters.add_adapters(pipe.transformer, rank=4, alpha=2)
    torch.manual_seed(1)
    for parameter in adapters.trainable_parameters(pipe.transformer):
        nn.init.normal_(parameter, std=0.2)
    pipe.save_adapters(folder, CARD)
    return folder


def load(model, lora, dtype=torch.float32, **arguments) -> Seg2AnyPipeline:
    pipe = Seg2AnyPipeline.from_pretrained(model, dtype=dtype, **arguments)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_adapters(str(lora))
    return pipe


def copy_base(source: nn.Module, target: nn.Module, weight_of) -> None:
    """Copy `weight_of(layer)` of every Linear of the base into the layer of the same name."""
    for name, layer in source.named_modules():
        if isinstance(layer, nn.Linear) and ".lora_" not in name:
            target.get_submodule(name).weight.data.copy_(weight_of(layer))


@pytest.fixture
def bitsandbytes_on_a_cpu(monkeypatch):
    """Remove diffusers' demand for a GPU: bitsandbytes has kernels for CPUs."""
    for name in QUANTIZERS.values():
        monkeypatch.setattr(getattr(bnb_quantizer, name), "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(getattr(bnb_quantizer, name), "update_device_map", lambda *_: {"": "cpu"})
    monkeypatch.setattr(memory, "check_mode", lambda *_: None)


@needs_bitsandbytes
def test_nf4_computes_as_on_its_unpacked_weights(tiny_model, lora, bitsandbytes_on_a_cpu):
    import bitsandbytes

    quantised, plain = load(tiny_model, lora, memory="nf4", device="cpu"), load(tiny_model, lora)
    layers = [m for m in quantised.transformer.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) > 20
    before = latents_of(plain, MANY)
    unpack = bitsandbytes.functional.dequantize_4bit
    copy_base(quantised.transformer, plain.transformer, lambda m: unpack(m.weight.data, m.weight.quant_state))
    expected = latents_of(plain, MANY)
    error = (latents_of(quantised, MANY) - expected).abs().mean()  # bitsandbytes' kernels keep the scales in bfloat16
    assert error < (expected - before).abs().mean() / 10


@needs_bitsandbytes
def test_int8_is_near_the_unquantised_model_with_its_adapters(tiny_model, lora, bitsandbytes_on_a_cpu):
    """int8 also rounds activations, so results differ, but by less than a tenth of the adapters' effect."""
    quantised, plain = load(tiny_model, lora, memory="int8", device="cpu"), load(tiny_model, lora)
    assert quantised.transformer.transformer_blocks[0].attn.to_q.base_layer.weight.dtype == torch.int8
    expected = latents_of(plain, MANY)
    error = (latents_of(quantised, MANY) - expected).abs().mean()
    plain.transformer.disable_adapters()
    assert 0 < error < (latents_of(plain, MANY) - expected).abs().mean() / 10


@needs_bitsandbytes
@pytest.mark.parametrize("mode", ["int8", "nf4"])
def test_one_file_is_quantised_as_its_folder_is(tiny_model, tmp_path, mode, bitsandbytes_on_a_cpu):
    """Weight by weight while it is read, to the same numbers and scales."""
    stock = FluxTransformer2DModel.from_pretrained(tiny_model, subfolder="transformer")
    file, states = save(bfl_weights(stock), tmp_path / "a.safetensors"), []
    for name, parts in ((file, str(tiny_model)), (tiny_model, None)):
        pipe = Seg2AnyPipeline.from_pretrained(str(name), base_parts=parts, memory=mode, device="cpu")
        states.append(pipe.transformer.state_dict())
    assert states[0].keys() == states[1].keys() and any("absmax" in key or "SCB" in key for key in states[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@needs_bitsandbytes
def test_int8_survives_numbers_beyond_fp16(tiny_model, lora, bitsandbytes_on_a_cpu):
    """bitsandbytes rounds to fp16 first; its threshold sends columns with outliers past that, in the layer's dtype."""
    quantised = load(tiny_model, lora, torch.bfloat16, memory="int8", device="cpu").transformer.context_embedder
    plain = load(tiny_model, lora, torch.bfloat16).transformer.context_embedder
    x = torch.randn(2, 3, plain.in_features).bfloat16()
    x[0, 0, 0] = 1e5
    with torch.no_grad():
        expected, y = plain(x), quantised(x)
    assert expected.abs().max() > 1000 and y.dtype == torch.bfloat16
    torch.testing.assert_close(y[0, 0], expected[0, 0], rtol=0.02, atol=expected[0, 0].abs().mean().item() / 50)


@needs_bitsandbytes
def test_a_model_that_was_saved_folded_is_quantised_afterwards(tiny_model, lora, tmp_path, bitsandbytes_on_a_cpu):
    folded, base = load(tiny_model, lora), Seg2AnyPipeline.from_pretrained(tiny_model)
    base.set_progress_bar_config(disable=True)
    folded.fold()
    folded.save_pretrained(tmp_path)
    quantised = Seg2AnyPipeline.from_pretrained(tmp_path, memory="int8", device="cpu")
    quantised.set_progress_bar_config(disable=True)
    assert quantised.transformer.transformer_blocks[0].attn.to_q.base_layer.weight.dtype == torch.int8
    expected = latents_of(folded, MANY)
    error = (latents_of(quantised, MANY) - expected).abs().mean()
    assert 0 < error < (latents_of(base, MANY) - expected).abs().mean() / 10
    for change in (quantised.fold, quantised.unfold):
        with pytest.raises(UserError, match="already folded into the base weights|is quantised"):
            change()


@needs_bitsandbytes
@pytest.mark.parametrize("mode", ["int8", "nf4", "fp8"])
def test_adapters_keep_the_precision_of_the_model(tiny_model, lora, mode, bitsandbytes_on_a_cpu):
    pipe = load(tiny_model, lora, torch.bfloat16, memory=mode, device="cpu")
    found = {p.dtype for name, p in pipe.transformer.named_parameters() if "lora_" in name}
    assert found == {torch.bfloat16} == {latents_of(pipe, ONE).dtype}


@pytest.mark.same_numbers("weights stored in fp8, and the same weights rounded to fp8 | equal")
def test_fp8_computes_as_on_the_rounded_weights(tiny_model, lora):
    small, plain = load(tiny_model, lora, memory="fp8", device="cpu"), load(tiny_model, lora)
    stored = {name: p for name, p in small.transformer.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert len(stored) > 20 and not any("lora_" in name for name in stored)
    before = latents_of(plain, MANY)
    for name, parameter in stored.items():
        plain.transformer.get_parameter(name).data.copy_(parameter.data)
    expected = latents_of(plain, MANY)
    assert (expected - before).abs().max() > 0.01
    assert torch.equal(latents_of(small, MANY), expected)
    late = load(tiny_model, lora)
    memory.place(late, "fp8", CPU)  # after the adapters, as infer.py does
    assert torch.equal(latents_of(late, MANY), expected)
    with pytest.raises(UserError, match="^memory fp8"):
        small.load_lora_weights({})


@pytest.mark.same_numbers("weights that move, and weights in place | 1e-4")
def test_group_offload_moves_adapters_that_came_later(tiny_model, lora):
    offloaded, plain = Seg2AnyPipeline.from_pretrained(tiny_model), load(tiny_model, lora)
    memory.place(offloaded, "group_offload", CPU)
    offloaded.load_adapters(str(lora))
    offloaded.set_progress_bar_config(disable=True)
    missing = [
        name
        for name, module in offloaded.transformer.named_modules()
        if isinstance(module, nn.Linear) and not hasattr(module, "_diffusers_hook")
    ]
    assert missing == []
    torch.testing.assert_close(latents_of(offloaded, MANY), latents_of(plain, MANY), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("free", "words"), [(2**40, []), (0, ["0.0 GiB are free", "slower"])])
def test_group_offload_copies_beside_the_computation_and_says_what_it_pins(
    stock_pipe, free, words, monkeypatch, caplog
):
    pipe, calls = fresh_pipe(stock_pipe), []
    monkeypatch.setattr(pipe, "enable_group_offload", lambda *_, **given: calls.append(given))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with caplog.at_level("INFO", logger="seg2any"):
        memory.place(pipe, "group_offload", torch.device("cuda:1"))
    (given,) = calls
    assert given["use_stream"] and given["record_stream"] and given["low_cpu_mem_usage"] == (free == 0)
    (line,) = caplog.messages
    assert all(word in line for word in [f"{memory.pinned_bytes(pipe) / 2**30:.1f} GiB", *words])


def test_pinned_copies_are_rounded_up_to_powers_of_two():
    parts = {"a": nn.Linear(3, 5), "b": nn.Linear(4, 4, bias=False), "scheduler": object()}
    assert memory.pinned_bytes(SimpleNamespace(components=parts)) == 64 + 32 + 64


@pytest.mark.parametrize(
    ("given", "device_map"),
    [
        ({"device": "cuda"}, "cuda"),
        ({"device": "cuda", "device_map": "balanced"}, "balanced"),
        ({"device": "cpu"}, None),
        ({"device": "cuda", "memory": "offload"}, None),
        ({}, None),
    ],
)
def test_mode_full_loads_straight_onto_a_gpu(given, device_map, monkeypatch):
    calls = []
    monkeypatch.setattr(Flux1Pipeline, "from_pretrained", classmethod(lambda cls, _, **more: calls.append(more)))
    monkeypatch.setattr(memory, "place", lambda *_: None)
    monkeypatch.setattr(pipeline, "make_current", lambda _: None)
    Seg2AnyPipeline.from_pretrained("model", **given)
    assert calls[0].get("device_map") == device_map


def test_a_pipeline_that_was_loaded_onto_a_device_is_used_as_any_other(tiny_model, lora):
    mapped, plain = (load(tiny_model, lora, device_map=place) for place in ("cpu", None))
    mapped.to("cpu")
    mapped.fold()
    plain.fold()
    assert torch.equal(latents_of(mapped, MANY), latents_of(plain, MANY))


@pytest.mark.parametrize("mode", ["offload", "int8", "nf4", "fp8"])
def test_networks_take_turns_on_a_gpu(stock_pipe, mode, monkeypatch):
    pipe, calls = fresh_pipe(stock_pipe), []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda device: calls.append(device))
    monkeypatch.setattr(pipe, "vae", stock_pipe.vae.__class__.from_config(stock_pipe.vae.config))
    memory.place(pipe, mode, torch.device("cuda:1"))
    assert calls == [torch.device("cuda:1")] and pipe.vae.use_slicing and pipe.vae.use_tiling


@pytest.mark.parametrize(
    ("mode", "device", "message"),
    [
        ("half", "cuda", "memory is 'half'; use one of full, offload, group_offload, int8, nf4, fp8"),
        ("offload", "cpu", "memory offload: moves weights between a GPU and the CPU, and the device is cpu; use full"),
        ("group_offload", "cpu", "memory group_offload: moves weights"),
        ("fp8", "mps", "memory fp8: this device has no 8-bit floats"),
    ]
    + [(mode, "cpu", f"memory {mode} needs (a GPU, and there is none|bitsandbytes)") for mode in ("int8", "nf4")],
)
def test_what_a_device_cannot_do_is_refused_before_anything_is_loaded(mode, device, message):
    with pytest.raises(UserError, match=message) as caught:
        Seg2AnyPipeline.from_pretrained("/nowhere", memory=mode, device=device)
    assert "\n" not in str(caught.value)


def test_training_knows_the_flag():
    words = {mode: config.load([f"--memory={mode}"]).trainer.base_quantization for mode in ("full", "int8", "nf4")}
    assert words == {"full": "none", "int8": "8bit", "nf4": "nf4"}
    assert config.load(["--memory=nf4", "--trainer.base_quantization=8bit"]).trainer.base_quantization == "8bit"
    for mode in ("offload", "group_offload", "fp8", "half"):
        with pytest.raises(UserError, match=f"^--memory: memory '?{mode}'? .*full, int8") as caught:
            config.load([f"--memory={mode}"])
        assert "\n" not in str(caught.value)
    assert {*words, *NOT_IN_TRAINING} == {*memory.MEMORY_MODES}


class TestTrueCfg:
    STEERED = {"negative_prompt": "a plain heart on a long and winding background", "true_cfg_scale": 3.0}

    @pytest.mark.parametrize("more", [{}, {"attention_mask_method": "none", "num_images_per_prompt": 2}])
    def test_guidance_in_one_pass_equals_two_passes(self, tiny_model, lora, more, monkeypatch):
        pipe, batches = load(tiny_model, lora), []
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer, "forward", lambda **k: (batches.append(len(k["hidden_states"])), forward(**k))[1]
        )
        layouts = [ONE, THREE]
        n_images = 2 * more.get("num_images_per_prompt", 1)
        two = latents_of(pipe, layouts, **self.STEERED, **more, cfg_in_one_pass=False)
        assert batches == [n_images] * 4
        one = latents_of(pipe, layouts, **self.STEERED, **more, cfg_in_one_pass=True)
        assert batches[4:] == [2 * n_images] * 2
        torch.testing.assert_close(one, two, **CLOSE)
        assert (two - latents_of(pipe, layouts, **more)).abs().max() > 0.1

    def test_both_passes_see_the_same_sample_of_the_contour(self, tiny_model, lora, monkeypatch):
        pipe, seen = load(tiny_model, lora), []
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer,
            "forward",
            lambda **k: (seen.append(k["joint_attention_kwargs"]["condition"].cond), forward(**k))[1],
        )
        for in_one_pass in (False, True):
            latents_of(pipe, [ONE, THREE], **self.STEERED, num_inference_steps=1, cfg_in_one_pass=in_one_pass)
        wanted, opposed, both = seen
        assert torch.equal(wanted, opposed) and torch.equal(both, torch.cat([wanted, opposed]))

    def test_both_passes_are_joined_only_if_memory_allows(self, monkeypatch):
        transformer = tiny_flux.tiny()
        weights = sum(4 * p.numel() for p in transformer.parameters())
        needed = memory.activation_bytes(transformer.config, 4, 100, 4) + weights
        cuda = torch.device("cuda")
        for free, fits in ((2 * needed, True), (2 * needed - 2, False)):
            monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
            assert memory.fits_doubled(transformer, 2, 100, cuda) is fits
        assert not memory.fits_doubled(transformer, 2, 100, CPU)


def test_modes_are_listed_in_one_table():
    named = re.findall(r"^(\w+)(?:, (\w+))?  +\S", memory_modes.__doc__, re.MULTILINE)
    assert [name for row in named[1:] for name in row if name] == list(memory_modes.MEMORY_MODES)
