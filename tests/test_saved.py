"""A pipeline saved with its adapters: loaded again by us, by diffusers and from the hub's cache, and uploaded."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel

from seg2any import Seg2AnyPipeline
from seg2any.adapters.card import AdapterCard
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.attention.settings import PLAIN
from seg2any.bases.flux1 import hub
from seg2any.bases.flux1.saved import saved_adapters
from seg2any.generate.model import adapter_folder
from seg2any.system.errors import UserError
from tests.tiny_flux import add_style
from tests.tiny_pipeline import CARD, MANY, ONE, copied

pytestmark = pytest.mark.slow
FAST = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def ours(pipe) -> Seg2AnyPipeline:
    """Copy the pipeline, give it a card, and give each adapter a weight of its own."""
    ours = copied(pipe)
    ours.card = CARD
    ours.transformer.set_adapters([DEFAULT, COND], [0.75, 1.5])
    return ours


@pytest.fixture(scope="module")
def saved(ours, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    ours.save_pretrained(folder)
    return folder


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Keep the code that diffusers copies out of the folder of this user."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_adapters_weights_and_settings_are_kept_to_the_bit(ours, saved, pipe):
    again = quiet(Seg2AnyPipeline.from_pretrained(saved))
    assert again.settings == CARD.condition and again.card.rank == 4
    found = again(MANY, **FAST).images
    assert torch.equal(found, ours(MANY, **FAST).images)
    assert (found - copied(pipe)(MANY, settings=CARD.condition, **FAST).images).abs().max() > 1e-2, "the weights"


def test_saving_again_and_moving_the_folder_change_nothing(saved, ours, tmp_path):
    Seg2AnyPipeline.from_pretrained(saved).save_pretrained(tmp_path / "second")
    (tmp_path / "second").rename(tmp_path / "moved")
    moved = quiet(Seg2AnyPipeline.from_pretrained(tmp_path / "moved"))
    assert torch.equal(moved(ONE, **FAST).images, ours(ONE, **FAST).images)


@pytest.mark.usefixtures("modules")
def test_diffusion_pipeline_builds_ours_from_the_folder(ours, saved):
    for custom in (str(saved), "pipeline"):
        found = DiffusionPipeline.from_pretrained(saved, custom_pipeline=custom, trust_remote_code=True)
        assert isinstance(found, Seg2AnyPipeline) and found.settings == CARD.condition
        assert torch.equal(quiet(found)(ONE, **FAST).images, ours(ONE, **FAST).images)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(saved, custom_pipeline=str(saved))


def test_diffusion_pipeline_alone_makes_plain_flux_and_says_what_it_leaves_out(saved, stock_pipe, caplog, monkeypatch):
    monkeypatch.setattr("diffusers.configuration_utils.logger.handlers", [caplog.handler])
    plain = DiffusionPipeline.from_pretrained(saved)
    assert type(plain) is FluxPipeline and type(plain.transformer) is FluxTransformer2DModel
    state = stock_pipe.transformer.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.transformer.state_dict().items())
    assert "Seg2AnyPipeline.from_pretrained(folder)" in caplog.text
    caplog.clear()
    Seg2AnyPipeline.from_pretrained(saved)
    assert not caplog.text


@pytest.mark.usefixtures("modules")
def test_a_folded_pipeline_is_built_by_diffusion_pipeline_too(ours, tmp_path):
    folded = copied(ours)
    folded.card = CARD
    folded.fold()
    folded.save_pretrained(tmp_path / "folded")
    expected = folded(MANY, **FAST).images
    given = {"custom_pipeline": str(tmp_path / "folded"), "trust_remote_code": True}
    for again in (
        Seg2AnyPipeline.from_pretrained(tmp_path / "folded"),
        DiffusionPipeline.from_pretrained(tmp_path / "folded", **given),
    ):
        torch.testing.assert_close(quiet(again)(MANY, **FAST).images, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", ["ours", "diffusers'"])
def test_a_pipeline_without_adapters_is_one_of_stock_diffusers(pipe, stock_pipe, tmp_path, classes):
    parts = dict(stock_pipe.components)
    if classes == "ours":  # not a stock transformer that was adopted
        parts["transformer"] = type(pipe.transformer).from_config(stock_pipe.transformer.config)
        parts["transformer"].load_state_dict(stock_pipe.transformer.state_dict())
    Seg2AnyPipeline(**parts).save_pretrained(tmp_path)
    found = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(found) is FluxPipeline and type(found.transformer) is FluxTransformer2DModel
    assert Seg2AnyPipeline.from_pretrained(tmp_path).settings == PLAIN
    assert not (tmp_path / "pipeline.py").exists() and not (tmp_path / "adapters").exists()


class TestRefused:
    def test_adapters_without_a_card(self, pipe, tmp_path):
        with pytest.raises(UserError, match="no card.*pipe.card = AdapterCard"):
            copied(pipe).save_pretrained(tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_several_weights_of_one_adapter(self, ours, tmp_path):
        uneven = copied(ours)
        uneven.card = CARD
        uneven.transformer.transformer_blocks[0].attn.to_q.set_scale(DEFAULT, 0.1)
        with pytest.raises(UserError, match="default: has several weights"):
            uneven.save_pretrained(tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_a_folder_without_its_adapters(self, saved, tmp_path):
        broken = shutil.copytree(saved, tmp_path / "broken")
        shutil.rmtree(broken / "adapters")
        with pytest.raises(UserError, match="saved with adapters, but the folder adapters/ is missing"):
            Seg2AnyPipeline.from_pretrained(broken)

    def test_an_index_that_lists_no_adapters(self, saved, tmp_path):
        index = json.loads((saved / "model_index.json").read_text())
        wrong = ("1", True, 10**400, float("nan"))
        for entry in ("adapters", {"adapters": ["default"]}, *({"adapters": {"default": each}} for each in wrong)):
            (tmp_path / "model_index.json").write_text(json.dumps(index | {"seg2any": entry}))
            with pytest.raises(UserError, match="model_index.json: seg2any does not list adapters"):
                saved_adapters(tmp_path)

    def test_a_further_lora_is_not_dropped_in_silence(self, ours, tmp_path):
        styled = copied(ours)
        styled.card = CARD
        add_style(styled.transformer, 0.6)
        with pytest.warns(UserWarning, match="style: not saved"):
            styled.save_pretrained(tmp_path)
        again = Seg2AnyPipeline.from_pretrained(tmp_path)
        assert set(again.get_active_adapters()) == {DEFAULT, COND}


def test_infer_finds_the_adapters_inside_of_the_model(saved, tmp_path):
    inside = saved / "adapters"
    assert adapter_folder(str(saved), None) == adapter_folder(str(saved), None, fold=True) == inside
    assert adapter_folder(str(saved), tmp_path) == tmp_path, "others replace them"


def test_lora_weights_of_ours_are_adapters(ours, stock_pipe, tmp_path):
    ours.save_lora_weights(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter.json").is_file()
    again = Seg2AnyPipeline(**copied(ours).components)
    again.unload_lora_weights()
    again.load_lora_weights(str(tmp_path / "lora"))
    assert again.settings == CARD.condition and set(again.get_active_adapters()) == {DEFAULT, COND}
    with pytest.raises(UserError, match="leave the other arguments out"):
        again.load_lora_weights(tmp_path / "lora", adapter_name="mine")
    layers = {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 32)}
    again.save_lora_weights(tmp_path / "stock", transformer_lora_layers=layers)
    assert [file.name for file in (tmp_path / "stock").iterdir()] == ["pytorch_lora_weights.safetensors"]


class TestHub:
    """The hub without network: a cache as downloads leave it, and an API that records what it is told."""

    def test_the_adapters_are_fetched_with_the_pipeline(self, saved, ours, tmp_path, monkeypatch):
        snapshot = tmp_path / "models--me--mine" / "snapshots" / ("0" * 40)
        shutil.copytree(saved, snapshot, ignore=shutil.ignore_patterns("adapters"))
        (tmp_path / "models--me--mine" / "refs").mkdir()
        (tmp_path / "models--me--mine" / "refs" / "main").write_text("0" * 40)
        asked = []

        def fetch(name: str, **options: object) -> str:
            asked.append((name, options["allow_patterns"]))
            shutil.copytree(saved / "adapters", snapshot / "adapters", dirs_exist_ok=True)
            return str(snapshot)

        monkeypatch.setattr("seg2any.bases.flux1.pipeline.snapshot_download", fetch)
        again = Seg2AnyPipeline.from_pretrained("me/mine", cache_dir=tmp_path, local_files_only=True)
        assert asked[0] == ("me/mine", ["adapters/*"])
        assert torch.equal(quiet(again)(ONE, **FAST).images, ours(ONE, **FAST).images)

    @pytest.fixture
    def uploads(self, tmp_path, monkeypatch) -> SimpleNamespace:
        done = SimpleNamespace(calls=[], has_card=False)

        class Api:
            def __init__(self, token=None):
                done.calls.append(("token", token))

            def create_repo(self, repo_id, private, exist_ok):
                done.calls.append(("create", repo_id, private))
                return SimpleNamespace(repo_id=repo_id)

            def file_exists(self, repo_id, name):
                return done.has_card

            def upload_folder(self, repo_id, folder_path, commit_message, create_pr):
                shutil.copytree(folder_path, tmp_path / "uploaded")
                done.calls.append(("upload", repo_id, commit_message))
                return "address"

        monkeypatch.setattr(hub, "HfApi", Api)
        return done

    @pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
    def test_the_whole_pipeline_is_uploaded_with_a_model_card(self, ours, uploads, tmp_path, way):
        if way == "push_to_hub":
            assert ours.push_to_hub("me/mine", private=True, token="hf_x") == "address"
        else:
            options = {"repo_id": "me/mine", "private": True, "token": "hf_x"}
            ours.save_pretrained(tmp_path / "local", push_to_hub=True, **options)
        assert uploads.calls == [
            *(("token", "hf_x"), ("create", "me/mine", True)),
            ("upload", "me/mine", "Upload Seg2AnyPipeline"),
        ]
        again = quiet(Seg2AnyPipeline.from_pretrained(tmp_path / "uploaded"))
        assert torch.equal(again(ONE, **FAST).images, ours(ONE, **FAST).images)
        _, header, body = (tmp_path / "uploaded" / "README.md").read_text().split("---\n", 2)
        header = yaml.safe_load(header)
        assert header["library_name"] == "diffusers" and "seg2any" in header["tags"]
        assert "license" not in header and "base_model" not in header, "the small test model is not FLUX.1-dev"
        assert 'Seg2AnyPipeline.from_pretrained("me/mine")' in body and "| `attention_mask_method` | base |" in body

    def test_a_card_that_the_repository_has_stays(self, ours, uploads, tmp_path):
        uploads.has_card = True
        ours.push_to_hub("me/mine")
        assert not (tmp_path / "uploaded" / "README.md").exists()

    def test_what_cannot_be_saved_creates_no_repository(self, pipe, uploads):
        with pytest.raises(UserError, match="no card"):
            copied(pipe).push_to_hub("me/mine")
        assert not uploads.calls


def test_cards_name_flux_and_its_licence_but_no_folder_of_this_machine():
    text = hub.model_card("me/mine", AdapterCard(dataset="/home/me/photos", step=7), True)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license_name"] == "flux-1-dev-non-commercial-license" and header["license"] == "other"
    assert header["base_model"] == "black-forest-labs/FLUX.1-dev" and "| steps | 7 |" in text
    for base in ("/home/me/flux", "examples/shapes/model", "~/flux", "seg2any/layout"):
        text += hub.model_card("me/mine", AdapterCard(base_model=base), False)
    assert "/home" not in text and "base_model: examples" not in text and "base_model: ~" not in text
    assert "no adapters" in hub.model_card("me/mine", None, True)


def test_nothing_is_printed_or_warned_of_when_all_is_kept(ours, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.save_pretrained(tmp_path)
