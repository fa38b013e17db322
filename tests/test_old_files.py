"""Files in tests/old_files: read with the same meaning, or refused in one line.

They were written by commit db340c7.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import prepare_dataset_bucket_map
from examples.shapes.make import build as build_t5
from seg2any.adapters.files import load_adapters
from seg2any.data.shapes import ShapesDataset
from seg2any.data.shapes_draw import Figure
from seg2any.generate.recipe import CIRCUMSTANCES, read_recipe
from seg2any.system.errors import UserError
from seg2any.training import build
from seg2any.training.checkpoint import STATE
from seg2any.training.identity import CONTENT
from seg2any.training.identity import WEIGHTS as BASE
from seg2any.training.state_file import read_state
from tests import tiny_run
from tests.conftest import random_pipe
from tests.golden_root import REPOSITORY
from tests.infer_command import MODEL, layout
from tests.tiny_flux import condition, run, sample, tiny

OLD = REPOSITORY / "tests" / "old_files"
WEIGHTS = ("default/pytorch_lora_weights.safetensors", "cond/pytorch_lora_weights.safetensors")


def test_adapters_act_as_they_did_and_their_card_says_the_same():
    model, expected = tiny(), load_file(OLD / "adapters" / "outputs.safetensors")
    card = load_adapters(model, OLD / "adapters")
    with torch.no_grad():
        found = run(model, condition([sample(1), sample(2, n_entities=1, n_cond=2)]))
    torch.testing.assert_close(found, expected["adapted"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, expected["plain"], atol=1e-2), "the adapters change the output"
    written = json.loads((OLD / "adapters" / "adapter.json").read_text())
    assert json.loads(card.to_json()) == written
    assert (card.condition.attention_mask_method, card.condition.hard_attn_block_range) == ("base", (0, 2))
    assert (card.condition.cond_attention, card.condition.regional_max_sequence_length) == ("isolated", 12)
    assert (card.rank, card.alpha, card.dataset, card.step) == (1, 2.0, "shapes", 7)


def test_the_published_layout_without_a_card_gets_the_published_settings(tmp_path: Path):
    for name in WEIGHTS:
        (tmp_path / name).parent.mkdir()
        save_file(load_file(OLD / "adapters" / name), tmp_path / name)  # without our metadata
    with_card, without = tiny(), tiny()
    load_adapters(with_card, OLD / "adapters")
    card = load_adapters(without, tmp_path)
    assert card.assumed and card.condition.hard_attn_block_range == (19, 37)
    theirs = without.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in with_card.state_dict().items())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_is_recognised_as_made_with_the_same_settings(tmp_path: Path, call, suffix: str):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(OLD / "images" / f"a.{suffix}", out)
    before = (out / f"a.{suffix}").read_bytes()
    recipe = read_recipe(out / f"a.{suffix}")
    assert recipe["layout"]["sha256"] == layout("a").digest() and recipe["seed"] == 3
    layout("a").write(tmp_path / "a.json")
    flags = {"seg_mask_path": tmp_path / "a.json", "lora_ckpt_path": MODEL.parent / "lora", "format": suffix}
    status, errors = call(output_path=out, **flags)
    assert status == 0 and "another" not in errors, errors
    assert (out / f"a.{suffix}").read_bytes() == before, "it is finished, so it is left alone"


def test_the_same_image_is_made_today(tmp_path: Path, call):
    layout("a").write(tmp_path / "a.json")
    out = tmp_path / "out"
    status, errors = call(seg_mask_path=tmp_path / "a.json", output_path=out, lora_ckpt_path=MODEL.parent / "lora")
    assert status == 0, errors
    made, old = (np.asarray(Image.open(folder / "a.png")).astype(int) for folder in (out, OLD / "images"))
    assert np.abs(made - old).max() <= 1
    old_recipe, recipe = read_recipe(OLD / "images" / "a.png"), read_recipe(out / "a.png")
    assert recipe["settings"] == old_recipe["settings"]
    assert {key for key in recipe.keys() ^ old_recipe.keys() if key not in CIRCUMSTANCES} == set()


def test_a_bucket_map_is_used_or_counted_again_with_the_same_rows(tmp_path: Path, monkeypatch, capsys):
    """Use an old map, or count the same rows again.

    The fingerprint of the data set `shapes` contained the code that draws.
    """
    shutil.copytree(OLD / "bucket_map", tmp_path / "maps")
    (path,) = (tmp_path / "maps").iterdir()
    before = pq.read_table(path)
    monkeypatch.chdir(REPOSITORY)
    words = ["config/seg2any_shapes.yaml", "--data.train.params={n_scenes: 5, entities: [1, 3]}", "--resolution=64"]
    words += [f"--trainer.cache_dir={tmp_path / 'maps'}", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["prepare_dataset_bucket_map.py", *words])
    assert prepare_dataset_bucket_map.main() == 0
    assert pq.read_table(path).equals(before) and "5 rows" in capsys.readouterr().out


def arguments(model: Path, folder: Path) -> list[str]:
    """Return the command line of the old run, with its files in `folder`."""
    given = json.loads((OLD / "arguments.json").read_text())
    places = {"run": folder / "run", "model": model, "cache": folder / "cache"}
    names = ("project.output_dir", "model.pretrained_model_name_or_path", "trainer.cache_dir")
    kept = [word for word in given if not word.startswith(tuple(f"--{name}=" for name in names))]
    return kept + [f"--{name}={place}" for name, place in zip(names, places.values(), strict=True)]


OLD_LOSSES = {
    row["step"]: row["loss"]
    for row in map(json.loads, (OLD / "run" / "log.jsonl").read_text().splitlines())
    if "loss" in row
}


@pytest.fixture
def same_run(monkeypatch):
    """Give data set and base their old fingerprints.

    That of `shapes` contained the code that draws. Without AVX2 the base's random weights differ in their last bits.
    """
    identity = read_state(OLD / "run" / "checkpoint-1" / STATE)["identity"]
    monkeypatch.setattr(ShapesDataset, "fingerprint", lambda self: identity[CONTENT])
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        monkeypatch.setattr(build, "base_fingerprint", lambda config: identity[BASE])


@pytest.fixture
def old_model(tmp_path: Path, monkeypatch) -> Path:
    """Save the random model as it was before T5 had the token "an", which shapes did not write either."""
    pieces = build_t5.t5_pieces()
    old = [piece for piece in pieces if piece[0] != "\u2581an"]
    assert len(old) == len(pieces) - 1
    monkeypatch.setattr(build_t5, "t5_pieces", lambda: old)
    random_pipe().save_pretrained(tmp_path / "old_model")
    caption = Figure.caption.fget
    monkeypatch.setattr(Figure, "caption", property(lambda figure: caption(figure).replace("an orange", "a orange")))
    return tmp_path / "old_model"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_over_old_caches_has_the_old_losses(old_model: Path, tmp_path: Path, same_run):
    shutil.copytree(OLD / "cache", tmp_path / "cache")
    tiny_run.fit(arguments(old_model, tmp_path))
    assert tiny_run.losses(tmp_path / "run") == pytest.approx(OLD_LOSSES, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_is_resumed_as_the_old_code_did(old_model: Path, tmp_path: Path, same_run):
    for name in ("run", "cache"):  # the cache holds the scenes as they were drawn then
        shutil.copytree(OLD / name, tmp_path / name)
    tiny_run.fit([*arguments(old_model, tmp_path), "--resume_from_checkpoint=latest"])
    assert tiny_run.losses(tmp_path / "run")[2] == pytest.approx(OLD_LOSSES[2], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_other_data_is_refused_in_one_line_that_says_what_to_do(tiny_model: Path, tmp_path: Path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    with pytest.raises(UserError, match=f"^{CONTENT}: [^\n]*; [^\n]*$"):
        tiny_run.fit([*arguments(tiny_model, tmp_path), "--resume_from_checkpoint=latest"])
