"""Test that a transformer in one file is read as the base: names, prefixes, 8-bit floats, GGUF, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file

from seg2any import Seg2AnyPipeline
from seg2any.bases.flux1.bfl_names import BFL, places_of
from seg2any.bases.flux1.source import find_source
from seg2any.commands.generate import run
from seg2any.generate.model import known_model
from seg2any.generate.options import parse_options
from seg2any.system.errors import UserError
from seg2any.training import config
from seg2any.training.build import base_fingerprint
from seg2any.training.dry_run import describe
from tests import tiny_run
from tests.bfl_files import COMFY, bfl_weights, in_scaled_fp8, save, save_gguf
from tests.infer_command import MODEL, layout


@pytest.fixture(scope="module")
def stock(tiny_model) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(tiny_model, subfolder="transformer")


@pytest.fixture(scope="module")
def parts(tiny_model, tmp_path_factory) -> Path:
    """Return a pipeline's folder whose transformer has no weights, only its sizes."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("parts") / "model"))
    next((folder / "transformer").glob("*.safetensors")).unlink()
    return folder


def loaded(file: Path, parts: Path | None = None, **more) -> dict[str, torch.Tensor]:
    pipeline = Seg2AnyPipeline.from_pretrained(str(file), base_parts=parts and str(parts), **more)
    return pipeline.transformer.state_dict()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("prefix", ["", COMFY, "diffusion_model."])
def test_black_forest_labs_names_give_the_same_network(stock, parts, tmp_path, prefix):
    file = save(bfl_weights(stock), tmp_path / "flux1-dev.safetensors", prefix)
    assert_equal(loaded(file, parts), stock.state_dict())


def test_rows_are_those_of_diffusers_own_converter():
    """At FLUX's own width, for which it was written; every row holds its number, and matrices have one column."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    weights = {name: rows_of(tensor) for name, tensor in bfl_weights(model).items()}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(weights))
    places = places_of(BFL, shapes)
    assert places.keys() == expected.keys() == shapes.keys()
    for name, place in places.items():
        found = [weights[place.name][begin:end] for begin, end in place.rows or ((0, None),)]
        assert torch.equal(torch.cat(found), expected[name]), name


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(tensor)).reshape(-1, *(1,) * (tensor.ndim - 1))


def test_the_sizes_come_from_the_tensors(parts, tmp_path):
    """A narrower model without guidance, with other blocks, heads and captions than the folder's own transformer."""
    sizes = {"num_layers": 1, "num_single_layers": 4, "attention_head_dim": 8, "num_attention_heads": 3}
    known = json.loads((parts / "transformer" / "config.json").read_text())
    torch.manual_seed(1)
    model = FluxTransformer2DModel.from_config(
        {**known, **sizes, "axes_dims_rope": (2, 2, 4), "guidance_embeds": False}
    )
    file = save(bfl_weights(model), tmp_path / "a.sft")
    folder = Path(shutil.copytree(parts, tmp_path / "parts"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(known | {"axes_dims_rope": [2, 2, 4]}))
    with pytest.warns(UserWarning, match="1 double and 4 single blocks instead of 2 and 3"):
        pipeline = Seg2AnyPipeline.from_pretrained(str(file), base_parts=str(folder))
    assert_equal(pipeline.transformer.state_dict(), model.state_dict())
    found, expected = (dict(network.config, _name_or_path=None) for network in (pipeline.transformer, model))
    names = [name for name in expected if name[0] != "_"]
    assert all(found[name] == expected[name] for name in names) and len(names) > 10
    config.unlink()
    with pytest.raises(UserError, match=r"heads have 8 channels.*transformer/config.json"):
        find_source(str(file), str(folder))


def test_a_file_beside_its_pipeline_needs_no_flag_and_gives_the_same_images(stock, parts, tiny_model, tmp_path):
    folder = Path(shutil.copytree(parts, tmp_path / "model"))
    file = save(bfl_weights(stock), folder / "flux1-dev.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_source(str(file)).pipeline == str(folder)
    latents = []
    for name in (file, tiny_model):
        pipeline = Seg2AnyPipeline.from_pretrained(str(name))
        transformer, n = pipeline.transformer.eval(), pipeline.transformer.config
        torch.manual_seed(0)
        given = {
            "hidden_states": torch.randn(1, 6, n.in_channels),
            "encoder_hidden_states": torch.randn(1, 3, n.joint_attention_dim),
            "pooled_projections": torch.randn(1, n.pooled_projection_dim),
            "timestep": torch.tensor([0.5]),
            "guidance": torch.tensor([3.5]),
            "img_ids": torch.arange(18.0).reshape(6, 3),
            "txt_ids": torch.zeros(3, 3),
        }
        with torch.no_grad():
            latents.append(transformer(**given).sample)
    assert torch.equal(*latents) and latents[0].abs().max() > 0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_kind_of_float_is_read(stock, parts, tmp_path, dtype):
    weights = bfl_weights(stock)
    found = loaded(save(weights, tmp_path / "a.safetensors", dtype=dtype), parts, dtype=torch.bfloat16)
    expected = {name: tensor.to(dtype).to(torch.bfloat16) for name, tensor in stock.state_dict().items()}
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("scale", "per_row", "prefix"),
    [("scale_weight", False, COMFY), ("weight_scale", False, ""), ("weight_scale", True, "")],
)
def test_scales_of_8_bit_floats_are_multiplied_in(stock, parts, tmp_path, scale, per_row, prefix):
    """The error is at most half a step of e4m3, a sixteenth of the number, or of the smallest normal number."""
    scaled = in_scaled_fp8(bfl_weights(stock), scale, per_row)
    file = save(scaled, tmp_path / "flux1-dev-fp8.safetensors", prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loaded(file, parts)
    for name, tensor in stock.state_dict().items():
        assert (found[name] - tensor).abs().max() <= tensor.abs().max() / 16, name
    assert not torch.equal(found["x_embedder.weight"], stock.x_embedder.weight)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("double_blocks.0.img_mlp.0.weight_scale", lambda w, s: s.new_ones(w.shape[0], w.shape[1] // 8)),
        ("double_blocks.0.img_mlp.0.weight_scale_inv", lambda w, s: s.new_ones(2, 2)),
        ("double_blocks.0.img_mlp.0.weight.absmax", lambda w, s: s.new_ones(7)),
        ("double_blocks.0.img_mlp.0.scale_weight", lambda w, s: s.new_ones(w.shape[0])),
    ],
)
def test_scales_of_unknown_schemes_are_refused_by_name(stock, parts, tmp_path, name, change):
    weights = bfl_weights(stock)
    matrix = weights["double_blocks.0.img_mlp.0.weight"]
    weights["double_blocks.0.img_mlp.0.weight"] = matrix.to(torch.float8_e4m3fn)
    file = save(weights | {name: change(matrix, torch.ones(1))}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"scales, first {name}"):
        loaded(file, parts)


def test_weights_that_are_missing_reshaped_packed_or_unknown_are_told(stock, parts, tmp_path):
    weights = bfl_weights(stock)
    name = "single_blocks.1.linear1.weight"
    for change, said in (
        ({name: None}, f"a.safetensors: lacks 1 of .*first {name}"),
        ({name: weights[name][:-1]}, f"another shape.*first {name}"),
        ({name: weights[name].to(torch.int8)}, "stored as I8"),
        ({"img_in.weight": None}, "lacks img_in.weight"),
        ({"img_in.weight": torch.ones(3)}, "has the shape .* img_in.weight"),
    ):
        changed = {key: value for key, value in {**weights, **change}.items() if value is not None}
        with pytest.raises(UserError, match=said) as caught:
            loaded(save(changed, tmp_path / "a.safetensors"), parts)
        assert "\n" not in str(caught.value)
    file = save(weights | {"double_blocks.0.extra.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="1 unknown weights are not used, first double_blocks.0.extra.weight"):
        loaded(file, parts)
    without_a_block = {key: value for key, value in weights.items() if not key.startswith("single_blocks.2.")}
    with pytest.warns(UserWarning, match="2 double and 2 single blocks"):
        find_source(str(save(without_a_block, tmp_path / "a.safetensors")), str(parts))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="download is incomplete"):
        find_source(str(file), str(parts))


def test_diffusers_names_in_one_file_are_read(stock, parts, tiny_model, tmp_path):
    file = save(stock.state_dict(), tmp_path / "a.safetensors", COMFY)
    assert_equal(loaded(file, parts), stock.state_dict())
    inside = next((Path(tiny_model) / "transformer").glob("*.safetensors"))
    with pytest.raises(UserError, match=f"give {tiny_model}"):
        find_source(str(inside))


def test_other_parts_in_the_file_are_not_read_and_that_is_said(stock, parts, tmp_path):
    weights = {COMFY + name: tensor for name, tensor in bfl_weights(stock).items()}
    others = {
        "vae.decoder.conv_in.weight": torch.ones(2),
        "text_encoders.t5xxl.transformer.shared.weight": torch.ones(2),
    }
    file = save(weights | others, tmp_path / "flux1-dev-fp8.safetensors")
    with pytest.warns(UserWarning, match=f"its VAE and text encoders are not read; those of {parts} are"):
        assert_equal(loaded(file, parts), stock.state_dict())


@pytest.mark.parametrize("packing", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_is_unpacked_while_it_is_read(stock, parts, tmp_path, packing):
    gguf = pytest.importorskip("gguf")
    weights, kind = bfl_weights(stock), gguf.GGMLQuantizationType[packing]
    file = save_gguf(weights, tmp_path / f"flux1-dev-{packing}.gguf", packing)
    rounded = {}
    for name, tensor in weights.items():  # packed whole and unpacked at once
        block = gguf.GGML_QUANT_SIZES[kind][0]
        fits = block == 1 or (tensor.ndim == 2 and tensor.shape[1] % block == 0)
        numbers = tensor.float().numpy()
        rounded[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(numbers, kind), kind)) if fits else tensor
    expected = save(rounded, tmp_path / "same.safetensors")
    found = loaded(file, parts)
    assert_equal(found, loaded(expected, parts))
    exact = torch.equal(found["context_embedder.weight"], stock.context_embedder.weight)
    assert exact == (packing == "F32")


def test_broken_gguf_and_a_missing_package_are_one_line(stock, parts, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    file = save_gguf(bfl_weights(stock), tmp_path / "a.gguf", "Q8_0")
    whole = file.read_bytes()
    for content in (whole[:-5000], whole[:300], b"GGUF\x03\0\0\0", b"", b"other" * 50):
        file.write_bytes(content)
        with pytest.raises(UserError, match="a.gguf: .*damaged") as caught:
            find_source(str(file), str(parts))
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match="a.gguf: .*pip install gguf=="):
        find_source(str(file), str(parts))


def test_the_package_of_the_message_is_the_one_of_the_requirements():
    from seg2any.system.tensor_file import GGUF_PACKAGE
    from tests.golden_root import REPOSITORY

    assert GGUF_PACKAGE in (REPOSITORY / "requirements.txt").read_text().split("\n")


@pytest.mark.parametrize(
    ("file", "names", "said"),
    [
        ("a", ["model.diffusion_model.joint_blocks.0.a"], "Stable Diffusion 3"),
        ("a", ["joint_blocks.0.a"], "Stable Diffusion 3"),
        ("a", ["conditioner.embedders.0.a", "model.diffusion_model.input_blocks.0"], "Stable Diffusion XL"),
        ("a", ["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        ("a", ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "adapter"),
        ("a", ["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], "adapter"),
        ("a", ["transformer.transformer_blocks.0.norm1_context.linear.lora_A.weight"], "adapter"),
        ("a", ["double_blocks.0.img_attn.qkv.weight", "controlnet_x_embedder.weight"], "ControlNet"),
        ("a", ["double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"], "FLUX.2"),
        ("a", ["encoder.down.0.block.0.conv1.weight"], "VAE"),
        ("a", ["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
        ("a", ["text_model.encoder.layers.0.mlp.fc1.weight"], "CLIP"),
        ("a", ["something"], "unknown network, first 'something'"),
        ("flux1-kontext-dev", ["double_blocks.0.img_attn.qkv.weight"], "Kontext by its name"),
        ("model-00001-of-00003", ["double_blocks.0.img_attn.qkv.weight"], "one of several files"),
    ],
)
def test_a_file_of_another_kind_is_refused_for_what_it_is(tmp_path, tiny_model, file, names, said):
    path = tmp_path / f"{file}.safetensors"
    save_file({name: torch.ones(1) for name in names}, path)
    with pytest.raises(UserError, match=said) as caught:
        find_source(str(path), str(tiny_model))
    assert str(caught.value).startswith(f"{path}: ") and ";" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("times", "said"), [(6, "FLUX.1-Fill"), (2, "FLUX.1-Depth or FLUX.1-Canny"), (3, "another model")]
)
def test_models_that_read_more_channels_are_named(stock, parts, tmp_path, times, said):
    weights = bfl_weights(stock)
    weights["img_in.weight"] = weights["img_in.weight"].repeat(1, times)
    with pytest.raises(UserError, match=said):
        find_source(str(save(weights, tmp_path / "a.safetensors")), str(parts))


def test_where_the_other_parts_come_from_is_asked_for(stock, parts, tmp_path, tiny_model):
    file = save(bfl_weights(stock), tmp_path / "flux1-dev.safetensors")
    for name, base_parts, said in (
        (file, None, "flux1-dev.safetensors: holds FLUX's transformer; .*--base_parts"),
        (file, tmp_path / "nowhere", "nowhere: no such folder"),
        (file, tmp_path, "no model_index.json, but the file flux1-dev.safetensors"),
        (tiny_model, parts, "--base_parts .* goes with a single file"),
        (tmp_path / "other.safetensors", None, "other.safetensors: no such file"),
        (tmp_path / "other.gguf", parts, "other.gguf: no such file"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            find_source(str(name), base_parts and str(base_parts))
        assert "\n" not in str(caught.value)
    (tmp_path / "model.ckpt").write_bytes(b"pickled")
    with pytest.raises(UserError, match=r"model.ckpt: is a file \(.ckpt\), not one of"):
        find_source(str(tmp_path / "model.ckpt"), str(parts))


def test_parts_of_another_width_do_not_go_with_the_file(stock, parts, tmp_path):
    folder = Path(shutil.copytree(parts, tmp_path / "parts"))
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 512}))
    with pytest.raises(UserError, match="text_encoder_2: gives vectors of width 512"):
        find_source(str(save(bfl_weights(stock), tmp_path / "a.safetensors")), str(folder))


def test_the_recipe_tells_files_and_their_parts_apart(stock, parts, tmp_path):
    weights = bfl_weights(stock)
    file = save(weights, tmp_path / "a.safetensors")
    first = known_model(str(file), str(parts))
    assert first["path"] == str(file) and len(first["fingerprint"]) == 16
    renamed = Path(shutil.copy(file, tmp_path / "b.safetensors"))
    assert known_model(str(renamed), str(parts))["fingerprint"] == first["fingerprint"]
    weights["final_layer.linear.bias"] = weights["final_layer.linear.bias"] + 1
    save(weights, renamed)
    assert known_model(str(renamed), str(parts))["fingerprint"] != first["fingerprint"]
    other = Path(shutil.copytree(parts, tmp_path / "parts"))
    vae = next((other / "vae").glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(vae).items()}, vae)
    assert known_model(str(file), str(other))["fingerprint"] != first["fingerprint"]


@pytest.fixture
def shapes_file(tmp_path) -> Path:
    """Write the shipped model's transformer as one file far from its folder."""
    stock = FluxTransformer2DModel.from_pretrained(MODEL, subfolder="transformer")
    return save(bfl_weights(stock), tmp_path / "shapes.safetensors", COMFY)


@pytest.mark.slow
def test_infer_checks_estimates_and_makes_the_images_of_the_folder(shapes_file, tmp_path, capsys):
    layout("one").write(tmp_path / "one.npz")

    def infer(*more: str, model: Path = shapes_file) -> str:
        given = ("--pretrained_model_name_or_path", model, "--seg_mask_path", tmp_path / "one.npz", *more)
        run(parse_options([str(word) for word in (*given, "--num_inference_steps", 2, "--device", "cpu")]))
        return capsys.readouterr().out

    by_file = ["--base_parts", MODEL, "--output_path", tmp_path / "file"]
    by_folder = ["--output_path", tmp_path / "folder"]
    assert "report: " in infer("--base_parts", MODEL, "--output_path", tmp_path / "check", "--check")
    tables = infer(*by_file, "--estimate"), infer(*by_folder, "--estimate", model=MODEL)
    assert tables[0].split("\n")[1:] == tables[1].split("\n")[1:] and "group_offload" in tables[0]
    infer(*by_file)
    assert "1 are there already" in infer(*by_file)
    infer(*by_folder, model=MODEL)
    images = [np.asarray(Image.open(next((tmp_path / name).glob("*.png")))) for name in ("file", "folder")]
    assert images[0].std() > 0 and np.array_equal(*images)


@pytest.mark.slow
def test_training_starts_from_a_file_and_its_command_at_the_end_names_the_parts(stock, parts, tmp_path):
    file = save(bfl_weights(stock), tmp_path / "flux1-dev.safetensors")
    arguments = tiny_run.arguments(file, tmp_path)
    with pytest.raises(UserError, match="model.pretrained_model_name_or_path: .*model.base_parts"):
        describe(config.load([*arguments, "--dry_run"]))
    arguments.append(f"--model.base_parts={parts}")
    settings = config.load(arguments)
    assert f"base_parts: {parts}" in describe(config.load([*arguments, "--dry_run"]))
    assert base_fingerprint(settings) == find_source(str(file), str(parts)).fingerprint(parts, Seg2AnyPipeline.NETWORKS)
    trainer = tiny_run.trainer([*arguments, "--trainer.max_train_steps=1"])
    found = {
        name.replace(".base_layer", ""): value for name, value in trainer.task.pipeline.transformer.state_dict().items()
    }
    assert_equal({name: found[name] for name in stock.state_dict()}, stock.state_dict())
    assert f"--base_parts {parts}" in trainer.task.usage(tmp_path / "checkpoint")
