"""Captions of `annotate`: from an endpoint that misbehaves, from a local model, from phrases, from a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seg2any.annotate import captions, prompts
from seg2any.annotate.caption_file import open_captions
from seg2any.annotate.captions import Describe, EndpointWriter, cleaned, take_known, take_phrases
from seg2any.annotate.draft import Draft, Region
from seg2any.annotate.photos import Photo
from seg2any.data.dataset import SampleError
from seg2any.layout.cut_out import cut_out, outlined
from seg2any.layout.rle import compressed, encode_rle
from seg2any.system.chat_model import ChatModel
from seg2any.system.errors import UserError
from seg2any.system.patience import NoAnswer, Patience
from tests import synthetic_data
from tests.annotate_set import GOOD, SIZE
from tests.stub_judge import StubJudge, stub_judge
from tests.test_vqa_local import save as save_chat_model

SOON = Patience(attempts=3, first_wait=0.01, longest_wait=0.02)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def draft(phrases: tuple[str | None, ...] = (None,) * 3) -> Draft:
    regions = [
        Region(number, compressed(np.array(encode_rle(mask)["counts"])), None, phrase)
        for number, (mask, phrase) in enumerate(zip(GOOD, phrases, strict=True), 7)
    ]
    made = Draft(Photo("group/a.jpg", "group/a.jpg", "a", "group"), SIZE, regions, masks_by="a method")
    made.image = IMAGE
    return made


def describe(server: StubJudge, concurrency: int = 2) -> Describe:
    server.said[prompts.PROMPTS["image"]] = ' <think>hm</think> "A street\n at noon." '
    server.said[prompts.PROMPTS["region"]] = "a red car"
    return Describe(EndpointWriter(server.url, "stub"), "stub", concurrency, SOON)


def test_changed_prompts_need_another_protocol():
    """Compare PROTOCOL and the prompts' digest with known values.

    Whoever changes a prompt has to change PROTOCOL, and then this line.
    """
    assert (prompts.PROTOCOL, prompts.PROMPTS_SHA256[:16]) == ("sacap-captions-1", "8dcdc5639895fed4")


@pytest.mark.parametrize("faults", [(), ("500",), ("429", "no json"), ("no content", "hangs up")])
def test_every_region_and_the_photo_are_described_whatever_the_endpoint_does(faults):
    with stub_judge(*faults) as server:
        found = draft()
        describe(server)(found)
        assert found.caption == "A street at noon." and [one.caption for one in found.regions] == ["a red car"] * 3
        assert found.captions_by == f"stub, {prompts.VERSION}"
        assert server.most_open <= 2 and server.requests == 4 * (1 + len(faults))
        texts = [body["messages"][0]["content"][-1]["text"] for body in server.bodies]
        assert {*texts} == {*prompts.PROMPTS.values()} and {body["temperature"] for body in server.bodies} == {0}


def test_a_region_is_shown_in_the_photo_and_alone():
    shown = captions.pictures_of(IMAGE, GOOD[0])
    assert (shown[0] == outlined(IMAGE, GOOD[0], 448)).all() and (shown[1] == cut_out(IMAGE, GOOD[0])).all()
    assert captions.small(np.zeros((900, 1792, 3), np.uint8)).shape == (225, 448, 3)


def test_an_endpoint_that_never_answers_leaves_no_caption():
    with stub_judge(*("500",) * 9) as server, pytest.raises(NoAnswer, match="HTTP 500"):
        describe(server)(found := draft())
    assert found.caption is None and not any(one.caption for one in found.regions)
    with stub_judge("401") as server, pytest.raises(UserError, match="captions endpoint .* HTTP 401; set OPENAI"):
        describe(server)(draft())


@pytest.mark.parametrize("text", ["", " \n", '"..."', "<think>a cat</think>", "x" * 20_000])
def test_an_answer_without_words_is_none(text: str):
    with pytest.raises(NoAnswer):
        cleaned(text)


def test_a_local_model_describes_and_counts_its_tokens(tmp_path: Path):
    model = ChatModel(str(save_chat_model(tmp_path)), "captions", "x/y")
    text, read, written = model.reply("is it a cat", (IMAGE[:56, :84],), 5)
    inputs = model.inputs("is it a cat", (IMAGE[:56, :84],))
    assert read == inputs["input_ids"].shape[1] and 1 <= written <= 5 and isinstance(text, str)


def test_phrases_are_kept_and_listed_for_a_photo_without_a_caption():
    found = draft(("a star", "a ring", "a star"))
    take_phrases(found)
    assert found.caption == "a star and a ring" and found.captions_by == "phrases of a method, listed for the photo"
    found = draft(("a star", "a ring", "a star"))
    found.caption = "a star beside a ring"
    take_phrases(found)
    assert found.caption == "a star beside a ring" and found.captions_by == "phrases of a method"


def test_captions_come_out_of_a_table_as_those_of_sacap(tmp_path: Path):
    rows = [
        {"imagename": "a.jpg", "image_group": "other", "caption": "wrong", "segments_info": segments("x")},
        {"imagename": "a.jpg", "image_group": "group", "caption": "right", "segments_info": segments("y")},
    ]
    synthetic_data.write_sacap_parquet(tmp_path / "table.parquet", rows)
    known = open_captions(tmp_path / "table.parquet")
    found = draft()
    take_known(found, known, str(tmp_path / "table.parquet"))
    assert (found.caption, [one.caption for one in found.regions]) == ("right", ["7 y", "8 y", "9 y"])
    assert found.captions_by == "table.parquet"
    found.regions[1].id = 77
    with pytest.raises(SampleError, match="group/a.jpg: it has no caption of region 77"):
        take_known(found, known, "table.parquet")
    with pytest.raises(SampleError, match="it has no captions of group/a.jpg"):
        take_known(found, lambda draft: None, "table.parquet")


def segments(word: str) -> list[dict]:
    return [{"anno_id": number, "caption": f"{number} {word}"} for number in (9, 8, 7)]
