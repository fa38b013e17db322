"""Check the text cache: its limit, which entry it drops, and that encoders do not mix."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline

from seg2any import Layout, Seg2AnyPipeline
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.text import CaptionKeys, TextCache, TextKey, encode_texts
from tests.tiny_pipeline import CLOSE, FAST, HARD, MANY, fresh_pipe, images_of

ROW = torch.zeros(4)  # 16 bytes


def key(caption: str, length: int = 8, kind: str = "t5") -> TextKey:
    return TextKey(caption, length, kind)


@pytest.fixture
def encoders(stock_pipe: FluxPipeline) -> SimpleNamespace:
    return SimpleNamespace(**{name: getattr(stock_pipe, name) for name in (
        "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"
    )})  # fmt: skip


def test_the_least_recently_used_leaves(encoders):
    cache = TextCache(Flux1(encoders), max_bytes=3 * ROW.nbytes)
    for name in "abc":
        cache[key(name)] = ROW
    assert cache[key("a")] is ROW
    cache[key("d")] = ROW
    assert [found.caption for found in cache] == ["c", "a", "d"] and cache.n_bytes == 3 * ROW.nbytes
    cache[key("large")] = torch.zeros(100)
    assert key("large") not in cache and len(cache) == 3
    cache[key("a")] = torch.zeros(8)
    assert [found.caption for found in cache] == ["d", "a"] and cache.n_bytes == 48


def test_caption_length_kind_and_encoder_are_told_apart(encoders):
    cache = TextCache(Flux1(encoders))
    cache[key("a")] = ROW
    assert key("a") in cache
    assert not any(other in cache for other in (key("b"), key("a", 9), key("a", kind="t5_padded"), key("a", 0, "clip")))
    mine, encoders.text_encoder_2 = encoders.text_encoder_2, copy.deepcopy(encoders.text_encoder_2)
    assert key("a") not in cache and len(cache) == 0
    with pytest.raises(KeyError):
        cache[key("a")]
    encoders.text_encoder_2 = mine
    assert cache[key("a")] is ROW
    encoders.text_encoder_2 = copy.deepcopy(mine).to(torch.bfloat16)
    assert key("a") not in cache


def test_a_cache_too_small_for_one_call_still_serves_it(encoders):
    prompts = [CaptionKeys(key("a red circle"), (key("a star"), key("a heart")), key("a red circle", 0, "clip"))]
    expected = encode_texts(prompts, Flux1(encoders))[0]
    cache = TextCache(Flux1(encoders), max_bytes=1)
    found = encode_texts(prompts, Flux1(encoders), cache)[0]
    assert torch.equal(found.embeds, expected.embeds) and len(cache) == 0


@pytest.mark.same_numbers("captions from a run's cache, and encoded again | 1e-4")
def test_a_run_encodes_each_caption_once(stock_pipe, monkeypatch):
    pipe, read = fresh_pipe(stock_pipe), []
    forward = pipe.text_encoder_2.forward
    monkeypatch.setattr(
        pipe.text_encoder_2, "forward", lambda ids, *a, **k: (read.extend(map(tuple, ids.tolist())), forward(ids))[1]
    )

    def images(pipe: Seg2AnyPipeline, layouts: list[Layout], known) -> torch.Tensor:
        return torch.cat([images_of(pipe, layout, **FAST, **HARD, known_texts=known) for layout in layouts])

    found = images(pipe, MANY * 2, TextCache(pipe.base))
    assert len(read) == len(set(read)) == 5  # two global captions, three of regions
    assert torch.equal(found[:3], found[3:])
    torch.testing.assert_close(found[:3], images(pipe, MANY, None), **CLOSE)  # T5 read other captions at a time
