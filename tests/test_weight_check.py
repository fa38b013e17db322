"""Test that weights which are missing, renamed, scaled or of another model are refused before anything is loaded."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seg2any import Seg2AnyPipeline
from seg2any.bases.flux1.recognise import refuse_other_models
from seg2any.bases.flux1.weight_check import CLASSES, check_weights
from seg2any.system.errors import UserError
from seg2any.system.weights import weights_fingerprint

PARTS = tuple(CLASSES)


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def file_of(model: Path, part: str) -> Path:
    return next((model / part).glob("*.safetensors"))


def change(model: Path, part: str, edit) -> None:
    weights = load_file(file_of(model, part))
    save_file(edit(weights), file_of(model, part), {"format": "pt"})


def set_config(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def lacks_some(w):
    return {key: value for key, value in w.items() if key != sorted(w)[4]}


def renamed(w):
    return {f"module.{key}": value for key, value in w.items()}


def wider(w):
    key = sorted(key for key in w if w[key].ndim == 2 or w[key].ndim == 4)[0]
    return w | {key: torch.cat([w[key]] * 2)}


def scaled(w):
    key = sorted(key for key in w if w[key].ndim >= 2)[1]
    return w | {key: w[key].to(torch.float8_e4m3fn), key.replace("weight", "scale_weight"): torch.ones(1)}


def packed(w):
    key = sorted(key for key in w if w[key].ndim >= 2)[1]
    return w | {key: w[key].to(torch.int8)}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("edit", "word"), [(lacks_some, "lacks"), (renamed, "lacks"), (wider, "shape"), (scaled, "scale"), (packed, "I8")]
)
def test_weights_that_do_not_fit_are_one_line_that_names_the_part(model, part, edit, word):
    change(model, part, edit)
    with pytest.raises(UserError) as caught:
        check_weights(model, PARTS)
    assert str(caught.value).startswith(f"{model / part}: ") and word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_models_of_diffusers_pass_and_load_through_the_check(model):
    assert check_weights(model, PARTS) is None
    change(model, "text_encoder", lacks_some)
    with pytest.raises(UserError, match="text_encoder"):
        Seg2AnyPipeline.from_pretrained(model)


def test_what_transformers_leaves_out_or_older_versions_wrote_is_accepted(model):
    clip, t5 = file_of(model, "text_encoder"), file_of(model, "text_encoder_2")
    old = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(clip).items()}
    save_file(old | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, clip, {"format": "pt"})
    weights = load_file(t5)
    shared = weights.pop("shared.weight")
    extra = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2), "lm_head.weight": torch.ones(3, 2)}
    for tied in ({"shared.weight": shared}, {"encoder.embed_tokens.weight": shared}):
        save_file(weights | tied | extra, t5, {"format": "pt"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_weights(model, PARTS)


def test_a_weight_that_no_network_knows_is_a_warning(model):
    change(model, "vae", lambda w: w | {"loss.logvar": torch.ones(1)})
    with pytest.warns(UserWarning, match="loss.logvar"):
        check_weights(model, PARTS)


def test_plain_8_bit_floats_are_read(model):
    change(model, "transformer", lambda w: {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in w.items()})
    check_weights(model, PARTS)


def in_shards(model: Path, part: str, mark: str = "") -> list[Path]:
    """Split the weights of a part into two files with an index, as diffusers and transformers write them."""
    file = file_of(model, part)
    weights, stem = load_file(file), file.stem
    names = sorted(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    shards = [f"{stem}{mark}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard, half in zip(shards, halves, strict=True):
        save_file({name: weights[name] for name in half}, file.with_name(shard), {"format": "pt"})
    where = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    file.with_name(f"{stem}.safetensors.index{mark}.json").write_text(json.dumps(index))
    file.unlink()
    return [file.with_name(shard) for shard in shards]


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_shards_pass_and_a_missing_one_is_named(model, part):
    shards = in_shards(model, part)
    check_weights(model, PARTS)
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        check_weights(model, PARTS)


def test_a_shard_that_lacks_what_its_index_names_is_refused(model):
    first, _ = in_shards(model, "transformer")
    save_file(lacks_some(load_file(first)), first, {"format": "pt"})
    with pytest.raises(UserError, match="transformer: lacks 1 "):
        check_weights(model, PARTS)


def test_a_file_that_was_cut_is_named(model):
    file = file_of(model, "vae")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=file.name):
        check_weights(model, PARTS)
    file.unlink()
    with pytest.raises(UserError, match="vae: "):
        check_weights(model, PARTS)


def test_variants_are_found_and_give_the_same_weights(model):
    whole = Seg2AnyPipeline.from_pretrained(model)
    for part in ("vae", "text_encoder"):
        file = file_of(model, part)
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    in_shards(model, "transformer", ".fp16")
    assert check_weights(model, PARTS) == "fp16" and weights_fingerprint(model, ("vae",))
    again = Seg2AnyPipeline.from_pretrained(model)
    for part in PARTS:
        a, b = getattr(whole, part).state_dict(), getattr(again, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    file = file_of(model, "text_encoder_2")
    file.rename(file.with_name(f"{file.stem}.bf16.safetensors"))
    with pytest.raises(UserError, match="bf16, fp16"):
        check_weights(model, PARTS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("FluxKontextPipeline", "Kontext"),
        ("FluxFillPipeline", "Fill"),
        ("Flux2Pipeline", "FLUX.2"),
        ("PixArtSigmaPipeline", "PixArtSigmaPipeline"),
    ],
)
def test_a_folder_of_another_model_is_named(model, name, said):
    set_config(model / "model_index.json", _class_name=name)
    with pytest.raises(UserError, match=said) as caught:
        Seg2AnyPipeline.from_pretrained(model)
    assert "FLUX.1-dev" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "config", "said"),
    [
        ("transformer", {"in_channels": 128}, "128"),
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
        ("vae", {"latent_channels": 4}, "channels"),
        ("text_encoder_2", {"d_model": 512}, "512"),
        ("text_encoder_2", {"architectures": ["UMT5EncoderModel"]}, "UMT5EncoderModel"),
        ("text_encoder", {"hidden_size": 1280}, "1280"),
    ],
)
def test_parts_of_another_model_are_named(model, part, config, said):
    set_config(model / part / "config.json", **config)
    with pytest.raises(UserError, match=said):
        refuse_other_models(str(model))


def test_schnell_is_a_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_other_models(str(model))
    set_config(model / "transformer" / "config.json", num_layers=19, num_single_layers=38, guidance_embeds=False)
    set_config(model / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False)
    with pytest.warns(UserWarning, match="schnell"):
        refuse_other_models(str(model))


def test_parts_and_adapters_are_refused_for_what_they_are(tmp_path, model):
    (tmp_path / "flux1-dev-Q4_K_S.gguf").write_bytes(b"GGUF\x03\0\0\0")
    for path, said in (
        (model / "transformer", "one part, a .*Transformer2DModel"),
        (tmp_path, "flux1-dev-Q4_K_S.gguf"),
        (tmp_path / "nothing", "no such folder"),
        (file_of(model, "vae"), f"give {model},"),
    ):
        with pytest.raises(UserError, match=said):
            Seg2AnyPipeline.from_pretrained(str(path))
