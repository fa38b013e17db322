"""CLIP score through the real loading code, with a tiny random CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

from examples.shapes.make.build import build_clip_tokenizer
from seg2any.evaluation.judges.clip import Clip
from seg2any.evaluation.metrics.bootstrap import interval
from seg2any.evaluation.metrics.captions import clip_score
from seg2any.evaluation.metrics.item import Item
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.pretrained import pretrained_processor
from tests.tiny_judges import save_clip

SHORT, LONG = "a red circle", "a red circle " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny CLIP with the published config.

    Its end token is 2, which transformers takes to mean "the token with the highest id".
    """
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip(str(folder))


def item(key: str, caption: str | None, seed: int, group: int = 0) -> Item:
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    return Item(key, image, group, Layout(np.ones((1, 40, 50), bool), ("x",), caption))


def test_score_is_the_mean_cosine_of_the_stock_model(folder: Path, clip: Clip):
    items = [item("a", SHORT, 0), item("a", SHORT, 1, group=1), item("b", "two blue squares", 2)]
    whole, published = clip_score(iter(items), clip)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), build_clip_tokenizer()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    expected: dict[str, list[float]] = {}
    for one in items:
        with torch.no_grad():
            output = model(
                **tokenizer(one.layout.caption, return_tensors="pt"),
                pixel_values=processor(images=one.image, return_tensors="pt")["pixel_values"],
            )
        cosine = torch.nn.functional.cosine_similarity(output.text_embeds, output.image_embeds)
        expected.setdefault(one.key, []).append(100 * cosine.item())
    per_sample = {key: np.mean(values) for key, values in expected.items()}
    assert whole.per_sample == pytest.approx(per_sample, abs=1e-4)
    assert published.per_sample == pytest.approx(per_sample, abs=1e-4)
    assert whole.value == pytest.approx(max(0, np.mean(list(per_sample.values()))), abs=1e-4)
    assert whole.extra == {"captions_too_long": 0}
    assert [one.name for one in (whole, published)] == ["CLIP score", "CLIP score, captions cut as published"]


def test_long_captions_keep_their_end_token_which_the_published_cut_loses(clip: Clip):
    long = [LONG, "two blue squares " + LONG, "a green star"]
    kept, cut = clip.of_captions(long), clip.of_captions_as_published(long)
    assert np.abs(kept[0] - kept[1]).max() > 1e-3
    assert np.allclose(cut[0], cut[1], atol=1e-6)  # without the end token the words do not count
    assert np.allclose(cut[2], kept[2], atol=1e-6)
    assert np.allclose(np.linalg.norm(kept, axis=1), 1, atol=1e-5)
    whole, published = clip_score([item("a", LONG, 0), item("b", SHORT, 0)], clip)
    assert whole.extra == {"captions_too_long": 1}
    assert whole.per_sample["a"] != pytest.approx(published.per_sample["a"])
    assert whole.per_sample["b"] == pytest.approx(published.per_sample["b"], abs=1e-4)


def test_a_mean_below_0_counts_as_0(clip: Clip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clip, "of_images", lambda images: -clip.of_captions([SHORT] * len(images)))
    whole, _ = clip_score([item("a", SHORT, 0), item("b", SHORT, 0)], clip)
    assert whole.value == 0 and whole.per_sample["a"] == pytest.approx(-100, abs=1e-3)
    assert interval(whole) == (0, 0)


def test_missing_files_are_named(clip: Clip, tmp_path: Path):
    with pytest.raises(UserError, match="'a' has no global caption"):
        clip_score([item("a", None, 0)], clip)
    with pytest.raises(UserError, match="'a' comes without a layout"):
        clip_score([Item("a", np.zeros((4, 4, 3), np.uint8))], clip)
    with pytest.raises(UserError, match="hf download openai/clip-vit-base-patch16"):
        Clip(str(tmp_path))


@pytest.mark.parametrize("kind", [CLIPTokenizerFast, AutoTokenizer])
@pytest.mark.parametrize(
    ("kept", "lacking"),
    [
        ([], "tokenizer.json, vocab.json, merges.txt"),
        (["vocab.json"], "tokenizer.json, merges.txt"),
        (["merges.txt"], "tokenizer.json, vocab.json"),
        (["vocab.json", "merges.txt"], None),
        (["tokenizer.json"], None),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_refused_by_the_names_of_files(folder, tmp_path, kind, kept, lacking):
    tokenizer = build_clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "all")
    (tmp_path / "all" / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (tmp_path / "all" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "some").mkdir()
    for name in ("tokenizer_config.json", *kept):
        shutil.copy(tmp_path / "all" / name, tmp_path / "some")
    shutil.copy(folder / "config.json", tmp_path / "some")
    if lacking is None:
        assert pretrained_processor(kind, tmp_path / "some", "it", "a/b").get_vocab() == tokenizer.get_vocab()
        return
    with pytest.raises(UserError) as refused:
        pretrained_processor(kind, tmp_path / "some", "it", "a/b")
    assert str(tmp_path / "some") in str(refused.value) and "hf download a/b" in str(refused.value)
    assert kind is AutoTokenizer or f"lacks {lacking}, the files of a tokenizer" in str(refused.value)
