"""Identity of a resumed run: settings, data, and fingerprints of the base model's weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.errors import UserError
from seg2any.system.weights import weights_fingerprint
from seg2any.training import build
from seg2any.training.identity import WEIGHTS, Identity
from tests import tiny_run

NETWORKS = Seg2AnyPipeline.NETWORKS

TENSORS = {
    "block.weight": torch.arange(4000.0).reshape(40, 100),
    "block.bias": torch.arange(40.0),
    "scale": torch.ones(()),
}


def test_identity_refuses_what_changed_and_names_it():
    identity = Identity({"seed": 1, "model.rank": 4})
    identity.load_state_dict({"seed": 1, "model.rank": 4})
    with pytest.raises(UserError, match="model.rank: 8 in the checkpoint, 4 now"):
        identity.load_state_dict({"seed": 1, "model.rank": 8})
    with pytest.raises(UserError, match="seed: None in the checkpoint"):
        identity.load_state_dict({"model.rank": 4})


def test_a_checkpoint_without_a_weights_fingerprint_is_resumed_with_a_warning():
    with pytest.warns(UserWarning, match="no fingerprint of .* weights"):
        Identity({"seed": 1, WEIGHTS: "a"}).load_state_dict({"seed": 1})
    with pytest.raises(UserError, match="weights: 'b' in the checkpoint, 'a' now"):
        Identity({"seed": 1, WEIGHTS: "a"}).load_state_dict({"seed": 1, WEIGHTS: "b"})


def test_a_key_missing_in_an_old_checkpoint_has_its_default():
    key = "model.cond2image_attention_weight"
    Identity({"seed": 1, key: 1.0}).load_state_dict({"seed": 1})
    with pytest.raises(UserError, match=f"{key}: 1.0 in the checkpoint, 0.5 now"):
        Identity({"seed": 1, key: 0.5}).load_state_dict({"seed": 1})


def folder_of(path, *files, part="transformer"):
    """Write each (name, tensors) of `files` into `path`/`part`."""
    (path / part).mkdir(parents=True)
    for name, tensors in files:
        save_file(tensors, path / part / name, metadata={"format": "pt", "file": name})
    return path


def test_weights_are_the_same_in_another_folder_in_shards_and_beside_variants(tmp_path):
    names = list(TENSORS)
    whole = folder_of(tmp_path / "whole", ("model.safetensors", TENSORS))
    shards = folder_of(
        tmp_path / "shards",
        ("model-00001-of-00002.safetensors", {names[2]: TENSORS[names[2]]}),
        ("model-00002-of-00002.safetensors", {name: TENSORS[name] for name in names[:2]}),
        ("model.fp16.safetensors", {name: tensor.half() for name, tensor in TENSORS.items()}),
    )
    assert weights_fingerprint(whole, NETWORKS) == weights_fingerprint(shards, NETWORKS) != ""
    torch.save(TENSORS, shards / "transformer" / "model.bin")  # ignored beside safetensors
    assert weights_fingerprint(whole, NETWORKS) == weights_fingerprint(shards, NETWORKS)


@pytest.mark.parametrize("change", ["values", "dtype", "name", "shape", "part"])
def test_other_weights_are_reported(change, tmp_path):
    other, part = dict(TENSORS), "transformer"
    if change == "values":
        other["block.weight"] = TENSORS["block.weight"] + 1e-3
    elif change == "dtype":
        other["block.bias"] = TENSORS["block.bias"].view(torch.int32)
    elif change == "name":
        other["block.bis"] = other.pop("block.bias")
    elif change == "shape":
        other["block.weight"] = TENSORS["block.weight"].reshape(100, 40)
    else:
        part = "vae"
    folders = [
        folder_of(tmp_path / "a", ("model.safetensors", TENSORS)),
        folder_of(tmp_path / "b", ("model.safetensors", other), part=part),
    ]
    assert len({weights_fingerprint(folder, NETWORKS) for folder in folders}) == 2


def test_damaged_and_other_weight_files_still_get_a_fingerprint(tmp_path):
    assert weights_fingerprint(tmp_path, NETWORKS) == ""
    (tmp_path / "vae").mkdir()
    path = tmp_path / "vae" / "model.safetensors"
    for content in (b"", b"\xff" * 40, b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b'{"a": 1}'):
        path.write_bytes(content)
        assert weights_fingerprint(tmp_path, NETWORKS)
    path.unlink()
    found = set()
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((500,), value)}, tmp_path / "vae" / "model.bin")
        found.add(weights_fingerprint(tmp_path, NETWORKS))
    assert len(found) == 2


def test_other_base_weights_are_refused_before_they_are_loaded_and_a_moved_model_is_not(
    tiny_model, tmp_path, monkeypatch
):
    arguments = [*tiny_run.arguments(tiny_model, tmp_path), "--resume_from_checkpoint=latest"]
    tiny_run.trainer([*arguments, "--trainer.max_train_steps=1"]).fit()
    model = tmp_path / "elsewhere" / "model"
    shutil.copytree(tiny_model, model)
    resumed = [*arguments, f"--model.pretrained_model_name_or_path={model}", "--trainer.max_train_steps=2"]
    assert tiny_run.trainer(resumed).resume().endswith("at step 1")

    monkeypatch.setattr(build, "load_pipeline", None)
    (path,) = (model / "transformer").glob("*.safetensors")
    weights = load_file(path)
    weights["x_embedder.weight"] = weights["x_embedder.weight"] * 1.01
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="model.pretrained_model_name_or_path's weights: .* in the checkpoint, .* now"):
        tiny_run.trainer(resumed)
    with pytest.raises(UserError, match="seed: 42 in the checkpoint, 43 now"):
        tiny_run.trainer([*arguments, "--seed=43"])
