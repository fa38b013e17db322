"""Folders of models from strangers: they bring weights and settings, and no code that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer

from seg2any.bases.flux1.recognise import refuse_other_models
from seg2any.bases.flux1.weight_check import check_weights
from seg2any.bases.flux1.weightless import read_small_files, weightless_pipeline
from seg2any.generate.model import explained
from seg2any.system.errors import UserError
from seg2any.system.pretrained import pretrained_model, pretrained_processor
from tests.golden_root import REPOSITORY

CODE = """
open({mark!r}, "w").close()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Mine(PreTrainedTokenizerFast): pass
class Config(PretrainedConfig): model_type = "mine"
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Link a model whose T5 folders may be changed; whoever is asked whether to run code fails the test."""
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    source, folder = REPOSITORY / "examples" / "shapes" / "model", tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.name in ("text_encoder_2", "tokenizer_2"):
            shutil.copytree(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def change(folder: Path, name: str, mark: Path, **values: object) -> None:
    """Change a configuration and put code beside it, for the part and for the whole model."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    for place in (folder, folder.parent):
        (place / "code.py").write_text(CODE.format(mark=str(mark)))


def test_a_tokenizer_of_unknown_kind_runs_no_code_and_asks_nothing(model: Path, tmp_path: Path):
    mark = tmp_path / "ran"
    own = {"auto_map": {"AutoTokenizer": ["code.Mine", None]}, "tokenizer_class": "Mine"}
    change(model / "tokenizer_2", "tokenizer_config.json", mark, **own)
    with pytest.raises(UserError, match="cannot be loaded") as error, explained(str(model)):
        read_small_files(str(model))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is not a folder of a AutoTokenizer"):
        pretrained_processor(AutoTokenizer, model / "tokenizer_2", "judge", "owner/name")
    assert not mark.exists()


def test_a_text_encoder_of_unknown_kind_runs_no_code_and_asks_nothing(model: Path, tmp_path: Path):
    mark, part = tmp_path / "ran", model / "text_encoder_2"
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Mine"}}
    change(part, "config.json", mark, **own)
    for load in (lambda: weightless_pipeline(str(model)), lambda: check_weights(model, ["text_encoder_2"])):
        with pytest.raises(UserError, match="cannot be loaded") as error, explained(str(model)):
            load()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is not a folder of a AutoModelForImageTextToText"):
        pretrained_model(AutoModelForImageTextToText, part, "judge", "owner/name")
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_on_the_hub_is_not_fetched(model: Path, tmp_path: Path, key: str):
    change(model / "text_encoder_2", "config.json", tmp_path / "ran", **{key: "owner/kernels"})
    with pytest.raises(UserError, match="names attention code on the hub; remove attn_implementation"):
        check_weights(model, ["text_encoder_2"])
    pipeline = weightless_pipeline(str(model))
    assert pipeline.text_encoder_2.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("text", ["[" * 5000, "[]", "5", "{", "\xff"])
def test_a_damaged_configuration_is_one_line(model: Path, text: str):
    (model / "text_encoder_2" / "config.json").write_text(text, encoding="latin-1")
    for load in (lambda: weightless_pipeline(str(model)), lambda: check_weights(model, ["text_encoder_2"])):
        with pytest.raises(UserError) as error, explained(str(model)):
            load()
        assert "\n" not in str(error.value) and "text_encoder_2" in str(error.value)


def test_a_mistyped_path_does_not_go_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    (tmp_path / "ckpt").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ckpt/nosuch: no such folder in ckpt, which is one here; correct the name"):
        read_small_files("ckpt/nosuch")
    with pytest.raises(UserError, match="owner/name: no such folder, and HF_HUB_OFFLINE"), explained("owner/name"):
        read_small_files("owner/name")
    assert not caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with caplog.at_level("INFO", "seg2any"):
        refuse_other_models("owner/name")
    assert "owner/name: no folder here, so it is taken from the hub" in caplog.text


@pytest.mark.parametrize("package", ["httpx", "httpx2", "requests"])
def test_a_proxy_that_refuses_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("seg2any.system.hub.check_access", lambda *words: None)
    refused = type("ProxyError", (Exception,), {"__module__": f"{package}.errors"})
    with pytest.raises(UserError, match="the hub did not give it \\('403 Forbidden'\\)"), explained("owner/name"):
        raise refused("403 Forbidden")
    with pytest.raises(ZeroDivisionError), explained("owner/name"):
        raise ZeroDivisionError
