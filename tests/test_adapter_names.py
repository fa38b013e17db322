"""Test that adapters of other trainers are read with their alpha, and that ours can be written for other programs."""

import json
import shutil
import warnings

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seg2any.adapters.export import export_adapter
from seg2any.adapters.files import COND, DEFAULT, WEIGHTS_FILE, AdapterCard, load_adapters, save_adapters
from seg2any.adapters.pairs import read_pairs
from seg2any.system.errors import UserError
from tests.tiny_flux import adapted, run, tiny

RANK, ALPHA = 3, 6.0


@pytest.fixture
def ours(tmp_path):
    """Save adapters with random weights, rank 3 and alpha 6, and return their folder."""
    save_adapters(adapted(RANK, ALPHA), tmp_path / "ours", AdapterCard())
    return tmp_path / "ours"


def rewritten(ours, change=lambda weights, name: weights, card=False, metadata=None, file=WEIGHTS_FILE):
    """Copy a folder of adapters without metadata, each through change(weights, adapter)."""
    folder = ours.parent / "theirs"
    for name in (DEFAULT, COND):
        weights = change(load_file(ours / name / WEIGHTS_FILE), name)
        (folder / name).mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / name / file, metadata)
    if card:
        shutil.copy(ours / "adapter.json", folder)
    return folder


def deltas(model) -> dict[str, torch.Tensor]:
    """Return scale * up @ down of every layer and adapter."""
    found = {}
    for name, layer in model.named_modules():
        for adapter in getattr(layer, "lora_A", {}):
            up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
            found[f"{name}.{adapter}"] = (layer.scaling[adapter] * up @ down).detach()
    return found


def assert_read_as(folder, expected) -> None:
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Already")
        load_adapters(model, folder)
    found, wanted = deltas(model), deltas(expected)
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)


def alphas(weights):
    return {key.replace("lora_A.weight", "alpha"): torch.tensor(ALPHA) for key in weights if "lora_A" in key}


def bare(weights, name):
    return {key.removeprefix("transformer."): value for key, value in (weights | alphas(weights)).items()}


def peft(weights, name):
    return {f"base_model.model.{key}": value for key, value in bare(weights, name).items()}


def peft_of_training(weights, name):
    return {
        key.replace("_A.", "_A.default.").replace("_B.", "_B.default."): v for key, v in peft(weights, name).items()
    }


def ai_toolkit(weights, name):
    return {f"diffusion_model.{key}": value for key, value in bare(weights, name).items()}


def down_up(weights, name):
    both = weights | alphas(weights)
    return {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for key, value in both.items()}


def one_trainer(weights, name):
    def renamed(key):
        module, dot, end = key.partition(".lora_") if ".lora_" in key else key.rpartition(".")
        return f"lora_transformer_{module.replace('.', '_')}{dot}{end}"

    return {renamed(key.removeprefix("transformer.")): value for key, value in down_up(weights, name).items()}


@pytest.mark.parametrize("change", [bare, peft, peft_of_training, ai_toolkit, down_up, one_trainer])
def test_names_of_other_trainers_are_read_with_their_alpha(ours, change):
    assert_read_as(rewritten(ours, change), adapted(RANK, ALPHA))


@pytest.mark.parametrize("where", ["metadata", "kohya", "adapter_config", "rslora", "card", "nowhere"])
def test_alpha_counts_wherever_it_stands(ours, where):
    metadata = {"ss_network_alpha": str(ALPHA), "ss_network_dim": str(RANK)} if where == "kohya" else None
    if where == "metadata":
        config = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
        metadata = {"lora_adapter_metadata": json.dumps(config)}
    file = "adapter_model.safetensors" if where in ("adapter_config", "rslora") else WEIGHTS_FILE
    folder = rewritten(ours, card=where == "card", metadata=metadata, file=file)
    alpha = ALPHA
    if where in ("adapter_config", "rslora"):
        config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": where == "rslora", "target_modules": ["to_q"]}
        for name in (DEFAULT, COND):
            (folder / name / "adapter_config.json").write_text(json.dumps(config))
        alpha = ALPHA * RANK**0.5 if where == "rslora" else ALPHA
    assert_read_as(folder, adapted(RANK, RANK if where == "nowhere" else alpha))


def test_ranks_and_alphas_that_differ_between_layers(ours):
    def smaller(weights, name):
        key = "transformer.transformer_blocks.0.attn.to_q"
        down, up = (weights[f"{key}.lora_{end}.weight"] for end in "AB")
        return (
            weights
            | alphas(weights)
            | {
                f"{key}.lora_A.weight": down[:2],
                f"{key}.lora_B.weight": up[:, :2],
                f"{key}.alpha": torch.tensor(5.0),
            }
        )

    model, source = tiny(), adapted(RANK, ALPHA)
    load_adapters(model, rewritten(ours, smaller))
    found, wanted = deltas(model), deltas(source)
    for adapter in (DEFAULT, COND):
        layer = source.transformer_blocks[0].attn.to_q
        up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
        wanted[f"transformer_blocks.0.attn.to_q.{adapter}"] = 5 / 2 * up[:, :2] @ down[:2]
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)
    again = tiny()
    save_adapters(model, ours.parent / "again", AdapterCard())
    load_adapters(again, ours.parent / "again")
    assert deltas(again).keys() == found.keys()
    for key, value in deltas(again).items():
        torch.testing.assert_close(value, found[key], rtol=1e-5, atol=1e-6)


def test_a_card_that_contradicts_the_file_is_a_warning(ours):
    card = json.loads((ours / "adapter.json").read_text())
    for change in ({"alpha": 1.5}, {"rank": 16}):
        (ours / "adapter.json").write_text(json.dumps(card | change))
        with pytest.warns(UserWarning, match=r"alpha 6.*card"):
            load_adapters(tiny(), ours)


@pytest.mark.parametrize("names", ["kohya", "comfyui"])
@pytest.mark.parametrize("adapter", [DEFAULT, COND])
def test_an_export_is_the_same_adapter_when_it_is_read(ours, names, adapter):
    out = ours.parent / "out" / "style.safetensors"
    export_adapter(ours, out, names, adapter)
    keys = list(load_file(out))
    prefix = "lora_unet_double_blocks_0_img_attn_qkv." if names == "kohya" else "diffusion_model.double_blocks.0."
    assert any(key.startswith(prefix) for key in keys)
    pairs, left = read_pairs(load_file(out), tiny(), out)
    expected = {key: value for key, value in deltas(adapted(RANK, ALPHA)).items() if key.endswith(f".{adapter}")}
    assert not left and {f"{layer}.{adapter}" for layer in pairs} == expected.keys()
    for layer, pair in pairs.items():
        assert pair.rank == RANK, "query, key and value get their own columns back"
        found = pair.alpha / pair.file_rank * pair.up @ pair.down
        torch.testing.assert_close(found, expected[f"{layer}.{adapter}"], rtol=1e-5, atol=1e-6)


WIDE = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "attention_head_dim": 128}


def wide_layers(cond: bool) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the layers of a FLUX of one double and one single block at FLUX's width."""
    with torch.device("meta"):
        model = tiny(FluxTransformer2DModel, **WIDE, axes_dims_rope=(16, 56, 56))
    layers = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    wanted = ("transformer_blocks.", "single_transformer_blocks.", *(("x_embedder",) if cond else ()))
    return {name: sizes for name, sizes in layers.items() if name.startswith(wanted)}


@pytest.mark.parametrize("names", ["kohya", "comfyui"])
def test_diffusers_reads_an_export_as_the_same_adapter(tmp_path, names):
    """Compare with diffusers' own converter, which knows FLUX's width only."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for layer, (n_in, n_out) in wide_layers(cond=True).items():
        weights[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, n_in, generator=generator)
        weights[f"transformer.{layer}.lora_B.weight"] = torch.randn(n_out, 2, generator=generator)
    config = {"transformer.r": 2, "transformer.lora_alpha": 5}
    (tmp_path / DEFAULT).mkdir()
    save_file(weights, tmp_path / DEFAULT / WEIGHTS_FILE, {"lora_adapter_metadata": json.dumps(config)})
    export_adapter(tmp_path, tmp_path / "out.safetensors", names)
    theirs = {
        k.removeprefix("transformer."): v
        for k, v in FluxPipeline.lora_state_dict(str(tmp_path / "out.safetensors")).items()
    }
    layers = {key.removesuffix(".lora_A.weight") for key in theirs if "lora_A" in key}
    assert layers == wide_layers(cond=True).keys()
    x = {size: torch.randn(size, 3, generator=generator) for size in {n_in for n_in, _ in wide_layers(True).values()}}
    for layer in layers:
        up, down = theirs[f"{layer}.lora_B.weight"], theirs[f"{layer}.lora_A.weight"]
        a, b = (weights[f"transformer.{layer}.lora_{end}.weight"] for end in "AB")
        given = x[a.shape[1]]
        torch.testing.assert_close(up @ (down @ given), 2.5 * b @ (a @ given), rtol=1e-3, atol=1e-2)


def test_diffusers_and_we_read_a_kohya_file_alike(tmp_path):
    """Give both one pair for query, key and value, whose columns are shared, and a small alpha."""
    generator = torch.Generator().manual_seed(4)
    sizes = {
        "double_blocks_0_img_attn_qkv": (3072, 9216),
        "double_blocks_0_txt_mlp_2": (12288, 3072),
        "single_blocks_0_linear1": (3072, 21504),
        "final_layer_adaLN_modulation_1": (3072, 6144),
    }
    weights = {}
    for name, (n_in, n_out) in sizes.items():
        weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, n_in, generator=generator)
        weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(n_out, 4, generator=generator)
        if "final" not in name:  # diffusers drops this alpha
            weights[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    with torch.device("meta"):
        model = tiny(FluxTransformer2DModel, **WIDE, axes_dims_rope=(16, 56, 56))
    pairs, _ = read_pairs(weights, model, tmp_path)
    save_file(weights, tmp_path / "kohya.safetensors")
    theirs = FluxPipeline.lora_state_dict(str(tmp_path / "kohya.safetensors"))
    theirs = {key.removeprefix("transformer."): value for key, value in theirs.items()}
    assert {key.removesuffix(".lora_A.weight") for key in theirs if "lora_A" in key} == pairs.keys()
    for layer, pair in pairs.items():
        scale = 1.0 if pair.alpha is None else pair.alpha / pair.file_rank
        given = torch.randn(pair.down.shape[1], 3, generator=generator)
        found = scale * pair.up @ (pair.down @ given)
        up, down = theirs[f"{layer}.lora_B.weight"], theirs[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(found, up @ (down @ given), rtol=1e-3, atol=1e-2)


def test_xlabs_names_are_read(tmp_path):
    model = tiny(**{"num_layers": 1})
    width = model.x_embedder.out_features
    weights = {
        "double_blocks.0.processor.qkv_lora1.down.weight": torch.randn(2, width),
        "double_blocks.0.processor.qkv_lora1.up.weight": torch.randn(3 * width, 2),
        "double_blocks.0.processor.proj_lora2.down.weight": torch.randn(2, width),
        "double_blocks.0.processor.proj_lora2.up.weight": torch.randn(width, 2),
    }
    pairs, _ = read_pairs(weights, model, tmp_path)
    assert {layer.rpartition("attn.")[2] for layer in pairs} == {"to_q", "to_k", "to_v", "to_add_out"}
    assert torch.equal(
        pairs["transformer_blocks.0.attn.to_k"].up,
        weights["double_blocks.0.processor.qkv_lora1.up.weight"][width : 2 * width],
    )


def half(weights, name):
    return {key: value for key, value in weights.items() if "single_" not in key}


def test_half_an_adapter_is_a_warning_and_refused_where_its_metadata_names_the_rest(ours):
    with pytest.warns(UserWarning, match="lacks"):
        load_adapters(tiny(), rewritten(ours, half))
    for name in (DEFAULT, COND):
        file = ours / name / WEIGHTS_FILE
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file(half(load_file(file), name), file, metadata)
    with pytest.raises(UserError, match="lacks"):
        load_adapters(tiny(), ours)


def test_exchanged_folders_and_one_file_twice_are_refused(ours):
    folder = rewritten(ours)
    (folder / DEFAULT).rename(folder / "x")
    (folder / COND).rename(folder / DEFAULT)
    (folder / "x").rename(folder / COND)
    with pytest.raises(UserError, match="exchanged"):
        load_adapters(tiny(), folder)
    shutil.copy(folder / DEFAULT / WEIGHTS_FILE, folder / COND)
    with pytest.raises(UserError, match="exchanged"):
        load_adapters(tiny(), folder)


def test_a_folder_without_cond_and_card_is_a_warning(ours):
    folder = rewritten(ours)
    shutil.rmtree(folder / COND)
    with pytest.warns(UserWarning, match="cond/"):
        assert not load_adapters(tiny(), folder).condition.is_use_cond_token


def test_weights_for_a_text_encoder_are_a_warning(ours):
    def more(weights, name):
        text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
        return weights | {f"{text}.lora_down.weight": torch.ones(2, 8), f"{text}.alpha": torch.tensor(1.0)}

    with pytest.warns(UserWarning, match="2 weights for text encoders"):
        load_adapters(tiny(), rewritten(ours, more))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("transformer.x_embedder.dora_scale", "DoRA"),
        ("transformer.x_embedder.lora_magnitude_vector", "DoRA"),
        ("lora_unet_img_in.lokr_w1", "LoKr"),
        ("lora_unet_img_in.hada_w1_a", "LoHa"),
        ("lora_unet_img_in.diff_b", "biases"),
        ("transformer.x_embedder.weight", "no name of a LoRA"),
    ],
)
def test_other_methods_than_lora_are_refused_by_name(ours, key, said):
    with pytest.raises(UserError, match=said) as caught:
        load_adapters(tiny(), rewritten(ours, lambda weights, name: weights | {key: torch.ones(2, 2)}))
    assert key in str(caught.value)


def test_an_adapter_of_another_model_and_an_empty_one_are_refused(ours):
    with pytest.raises(UserError, match="another model"):
        load_adapters(tiny(), rewritten(ours, lambda w, name: {k.replace("attn", "attn1"): v for k, v in w.items()}))
    shutil.rmtree(ours.parent / "theirs")
    with pytest.raises(UserError, match="no weights"):
        load_adapters(tiny(), rewritten(ours, lambda weights, name: {}))
    shutil.rmtree(ours.parent / "theirs")
    folder = rewritten(ours, file="a.safetensors")
    shutil.copy(folder / DEFAULT / "a.safetensors", folder / DEFAULT / "b.safetensors")
    with pytest.raises(UserError, match="2 safetensors"):
        load_adapters(tiny(), folder)


def test_a_style_of_another_trainer_acts_in_the_forward_pass(ours):
    """Load kohya's file as `default` and compare a whole forward pass with our own file."""
    source = adapted(RANK, ALPHA)
    folder = ours.parent / "kohya"
    for adapter in (DEFAULT, COND):
        export_adapter(ours, folder / adapter / "trained.safetensors", "kohya", adapter)
    model = tiny()
    load_adapters(model, folder)
    with torch.no_grad():
        torch.testing.assert_close(run(model), run(source), rtol=1e-4, atol=1e-4)
