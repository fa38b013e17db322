"""Conversion of X-SAM's published weights: names, shapes, safety, shards, and a folder that answers as before."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from seg2any.commands import convert_xsam
from seg2any.segment.xsam import convert
from seg2any.segment.xsam.config import XSamConfig
from seg2any.segment.xsam.convert import compare, config_of, wanted_shapes
from seg2any.segment.xsam.folder import open_speaker
from seg2any.segment.xsam.keys import our_name, published_name
from seg2any.segment.xsam.memory import GIB, predict
from tests.parity_xsam.recorded import ROOT, config, language_tokenizer, tensors_of, text, tokenizer, whole_model

REAL = json.loads((ROOT / "real_keys.json").read_text(encoding="utf-8"))


def shapes_of(stage: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in REAL[stage].items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return a folder with the recorded model as it was published: a pickled dict, a config and a tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"state_dict": tensors_of("model_tiny_stage3")}, folder / "pytorch_model.bin")
    config().save_pretrained(folder)
    language_tokenizer().save_pretrained(folder / "language")
    return folder


def call(capsys, *words: object) -> tuple[int, str, str]:
    status = convert_xsam.main([str(word) for word in words], "convert-xsam")
    told = capsys.readouterr()
    return status, told.out, told.err


def run(capsys, published: Path, target: Path, *more: object) -> tuple[int, str, str]:
    words = ("--config", published / "config.json", "--tokenizer", published / "language", "--weight_dtype", "fp32")
    return call(capsys, published / "pytorch_model.bin", target, *words, *more)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "count"), [("stage3", 1356), ("stage1", 701)])
def test_the_real_names_and_shapes_are_those_of_the_published_configuration(stage: str, count: int):
    found = shapes_of(stage)
    described = config_of(found, "recorded")
    wanted = wanted_shapes(described)
    result = compare(found, wanted)
    assert result.fits and len(result.matched) == len(found) == count
    assert {published_name(name): shape for name, shape in wanted.items()} == found
    if isinstance(described, XSamConfig):
        rows = found["llm.model.embed_tokens.weight"][0]
        assert (described.seg_token_id, described.phrase_end_id) == (rows - 3, rows - 1)
        predicted = predict(described)
        assert predicted["16"].weights == 2 * sum(map(math.prod, found.values()))
        assert predicted["4"].weights < predicted["8"].weights < predicted["16"].weights
        assert predicted["16"].total < 24 * GIB


def test_names_of_the_later_head_are_known():
    for name in REAL["stage3"]:
        later = name.replace("visual_encoder.", "vision_encoder.")
        later = later.replace("segmentor.logit_scale", "segmentor.class_predictor.logit_scale")
        assert our_name(later) == our_name(name)
    assert our_name("segmentor.class_predictor.predictor.bias") == our_name("segmentor.class_predictor.bias")


def test_names_that_do_not_fit_are_told_by_kind():
    found = compare({"a.weight": (2, 3), "b": (1,), "x": (4,)}, {"a.weight": (2, 4), "b": (1,), "c": (5,)})
    assert (found.matched, found.missing, found.unexpected) == (("b",), ("c",), ("x",))
    assert found.reshaped == (("a.weight", (2, 3), (2, 4)),) and not found.fits
    assert "reshaped: a.weight [2, 3] for [2, 4]" in found.details() and "missing: c" in found.details()


def test_a_converted_folder_answers_like_the_recorded_model(published: Path, tmp_path: Path, capsys, monkeypatch):
    tensors = tensors_of("model_tiny_stage3")
    monkeypatch.setattr(convert, "SHARD", sum(value.nbytes for value in tensors.values()) // 4)
    status, output, _ = run(capsys, published, tmp_path / "xsam")
    assert status == 0 and f"{len(tensors)} weights matched, 0 missing, 0 unexpected, 0 reshaped" in output
    assert len(list((tmp_path / "xsam").glob("model-*.safetensors"))) > 2
    assert not list(tmp_path.glob(".*"))
    speaker = open_speaker(tmp_path / "xsam", torch.device("cpu"), torch.float32)
    mine, theirs = speaker.model.state_dict(), whole_model().state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ids = text()["cases"]["refseg_infer"]["input_ids"]
    from tests.parity_xsam.text import turns_of

    about = text()["cases"]["refseg_infer"]
    assert speaker.encoder.encode(turns_of(about), False).ids == ids
    status, _, errors = run(capsys, published, tmp_path / "xsam")
    assert status == 2 and "exists" in errors


def test_shards_of_a_pickle_are_read(published: Path, tmp_path: Path, capsys):
    tensors = list(tensors_of("model_tiny_stage3").items())
    weights, half = {}, len(tensors) // 2
    for number, some in enumerate((tensors[:half], tensors[half:]), start=1):
        torch.save(dict(some), tmp_path / f"part-{number}.bin")
        weights |= dict.fromkeys(dict(some), f"part-{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))
    status, output, _ = call(capsys, tmp_path, "--check", "--config", published / "config.json")
    assert status == 0 and f"{len(tensors)} weights matched" in output and "predicted GPU memory" in output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.pop("bg_embeds.weight"), "1 missing, 0 unexpected, 0 reshaped; missing: bg_embeds.weight"),
        (lambda x: x.update(more=torch.zeros(1)), "1 unexpected, 0 reshaped; unexpected: more"),
        (lambda x: x.update({"bg_embeds.weight": torch.zeros(2, 3)}), "reshaped: bg_embeds.weight [2, 3] for {shape}"),
    ],
)
def test_weights_that_do_not_fit_write_nothing(change, told: str, published: Path, tmp_path: Path, capsys):
    tensors = tensors_of("model_tiny_stage3")
    told = told.format(shape=list(tensors["bg_embeds.weight"].shape))
    change(tensors)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    words = (tmp_path / "pytorch_model.bin", tmp_path / "out", "--config", published / "config.json")
    status, _, errors = call(capsys, *words)
    assert status == 2 and told in errors and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()


class Opened:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, capsys):
    torch.save({"a": Opened(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    status, _, errors = call(capsys, tmp_path / "pytorch_model.bin", "--check")
    assert status == 2 and "not loaded for safety" in errors and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (shapes_of("stage2_saved"), "only projectors, as the second stage"),
        ({"x": (2,)}, "holds no X-SAM"),
    ],
)
def test_other_weights_are_refused(tensors: dict, told: str, tmp_path: Path, capsys):
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in tensors.items()}, tmp_path / "pytorch_model.bin")
    status, _, errors = call(capsys, tmp_path / "pytorch_model.bin", "--check")
    assert status == 2 and told in errors


def test_another_tokenizer_is_refused(published: Path, tmp_path: Path, capsys):
    other = PreTrainedTokenizerFast.from_pretrained(published / "language")
    other.add_tokens(["unheard"])
    other.save_pretrained(tmp_path / "other")
    status, _, errors = run(capsys, published, tmp_path / "out", "--tokenizer", tmp_path / "other")
    number = text()["ids"]["seg"]
    assert status == 2 and f"the tokenizer has <SEG> at {number + 1}, and the model at {number}" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bits", "kind"), [("8", "Linear8bitLt"), ("4", "Linear4bit")])
def test_only_layers_of_the_language_model_are_rounded(bits: str, kind: str, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    whole_model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = open_speaker(tmp_path, torch.device("cpu"), torch.float32, bits).model
    rounded = {name for name, module in model.named_modules() if type(module).__name__ == kind}
    layers = {f"llm.model.layers.{name}" for name, _ in model.llm.model.layers.named_modules() if "proj" in name}
    assert rounded == layers and len(rounded) > 4
