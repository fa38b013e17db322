"""Conversations that X-SAM is trained with: what they ask, what they answer, and the masks that they mean."""

from __future__ import annotations

import random
import re

import cv2
import numpy as np
import pytest

from seg2any.data.words import Words, words_of
from seg2any.segment.xsam.pictures import Frame, seg_masks
from seg2any.segment.xsam.regions import POINTS
from seg2any.segment.xsam.splice import PICTURE, REGION
from seg2any.training.tasks.xsam import joined_targets
from seg2any.training.tasks.xsam_prompts import FORMS, draw_prompts
from seg2any.training.tasks.xsam_writing import SPEAKING, TALKS, closed_target, offers, speak_categories
from tests import tiny_xsam
from tests.tiny_run import same
from tests.tiny_xsam import generator, writer


@pytest.fixture(scope="module")
def words() -> Words:
    return tiny_xsam.words()


def test_chats_describe_the_image_or_answer_questions_about_it(words):
    write, told, counts = writer(words), 0, []
    answers = dict(pair for pairs in words[0].talk.values() for pair in pairs)
    for seed in range(20):
        encoded = write(words[0], "imgconv", generator(seed)).encoded
        assert encoded.cond_ids is None and encoded.ids.count(PICTURE) == 1
        text = write.encoder.tokenizer.decode([one for one in encoded.ids if one >= 0])
        turns = [
            turn.split("<|end|>\n<|assistant|>\n") for turn in text.removesuffix("<|end|>\n").split("<|user|>\n")[1:]
        ]
        if turns[0][1].removesuffix("<|end|>\n") == words[0].told.text:
            told += len(turns) == 1
            continue
        counts.append(len(turns))
        assert all(answers[question.strip()] == answer.removesuffix("<|end|>\n") for question, answer in turns)
    assert told + len(counts) == 20 and told > 0 and max(counts) > 1


def test_several_questions_are_asked_of_an_image_and_some_answers_explain(words):
    write = writer(words)
    texts = []
    for index in range(6):
        encoded = write(words[index], "reaseg", generator(index)).encoded
        assert encoded.ids.count(PICTURE) == 1
        texts.append(write.encoder.tokenizer.decode([one for one in encoded.ids if one >= 0]))
    reasons = {one.reason for n in range(6) for of_kind in words[n].questions.values() for one in of_kind}
    assert max(text.count("<SEG>") for text in texts) > 1 and any(one in text for one in reasons for text in texts)


@pytest.mark.parametrize("kind", [kind for kind in SPEAKING if kind not in ("vgdseg", *TALKS)])
def test_a_conversation_marks_what_its_masks_show(kind, words):
    """Independent of the writer: phrases are cut out of the ids, and masks are compared with the scene's figures."""
    write, seen = writer(words), 0
    for index in range(len(words)):
        worded = words[index]
        if not offers(worded, kind):
            continue
        written = write(worded, kind, generator(index))
        assert same(written.encoded.ids, write(worded, kind, generator(index)).encoded.ids)
        text = write.encoder.tokenizer.decode([one for one in written.encoded.ids if one >= 0])
        phrases = [one.strip() for one in re.findall(r"<p>(.*?)</p>", text)]
        assert text.count("<SEG>") == len(written.targets)
        asked = [one for by_kind in (worded.phrases, worded.questions) for found in by_kind.values() for one in found]
        known = {one.text.lower(): one.regions for one in asked}
        for target in written.targets:
            for mask, number in zip(target.masks, target.classes.tolist(), strict=True):
                phrase = phrases[number]
                regions = known.get(phrase.lower())
                if kind in ("genseg", "gcgseg"):
                    name = phrase.split()[-1]
                    regions = [n for n, one in enumerate(worded.names) if one == name or f" {one} " in phrase]
                    small = [worded.masks[n][::2, ::2] for n in regions]
                    assert any((mask.numpy() & one).sum() > 0.6 * (mask.numpy() | one).sum() for one in small), phrase
                else:
                    one = worded.masks[list(regions)].any(0)[::2, ::2]
                    assert (mask.numpy() & one).sum() > 0.6 * (mask.numpy() | one).sum(), phrase
                seen += 1
    assert seen > 10


def test_visual_prompts_ask_for_the_regions_that_they_lie_in(words):
    write, inside = writer(words), []
    for index in range(len(words)):
        written = write(words[index], "vgdseg", generator(index))
        (target,) = written.targets
        assert (written.encoded.ids.count(REGION), target.classes.tolist()) == (
            len(written.shown),
            [*range(len(written.shown))],
        )
        assert same(written.shown, write(words[index], "vgdseg", generator(index)).shown)
        pairs = zip(target.masks, written.shown, strict=True)
        inside += [(mask & one).sum().item() / one.sum().item() for mask, one in pairs]
    assert len(inside) > 12 and sum(inside) / len(inside) > 0.6


def test_what_a_region_is_is_asked_where_a_visual_prompt_shows_it(words):
    write, hits = writer(words), []
    for index in range(len(words)):
        worded, written = words[index], write(words[index], "vgdconv", generator(index))
        assert written.targets == () and PICTURE not in written.encoded.ids
        text = write.encoder.tokenizer.decode([one for one in written.encoded.labels if one >= 0])
        told = re.findall(r"It is (.*?)\.<\|end\|>", text)
        regions = [list(worded.looks).index(one) for one in told]
        assert written.encoded.ids.count(REGION) == len(regions) == len(written.shown)
        masks = seg_masks(worded.masks[regions], Frame.of(worded.image.shape[:2], 32))
        hits += [bool((mask & one).any()) for mask, one in zip(masks, written.shown, strict=True)]
    assert len(hits) > 20 and sum(hits) > 0.9 * len(hits)


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_of_each_form_touches_its_region_and_the_model_reads_all_of_it(form, monkeypatch):
    monkeypatch.setattr("seg2any.training.tasks.xsam_prompts.FORMS", (form,))
    masks = np.zeros((3, 200, 100), bool)
    masks[0, 20:180, 10:60], masks[1, 150:158, 70:90], masks[2, 199, 99] = True, True, True
    frame = Frame.of((200, 100), 64)
    shown = draw_prompts(masks, frame, random.Random(0))
    wide = seg_masks(np.stack([cv2.dilate(one.astype(np.uint8), np.ones((13, 13))) for one in masks]), frame)
    assert shown.shape == (3, 64, 64) and not (shown & ~wide).any()
    assert shown.flatten(1).any(1).all() and shown.flatten(1).sum(1).max() <= POINTS


def test_categories_that_an_image_lacks_are_asked_for_half_of_the_time(words):
    worded, counts = words[0], []
    for seed in range(60):
        names = speak_categories(worded, words.categories, random.Random(seed)).names
        assert {*worded.names} <= {*names} <= {*words.categories} and len({*names}) == len(names)
        counts.append(len(names))
    assert 20 < counts.count(len(words.categories)) < 50 and min(counts) < len(words.categories) - 2


def test_phrases_of_a_batch_are_classes_of_all_of_it(words):
    write = writer(words)
    written = [write(words[index], "refseg", generator(index)) for index in range(3)]
    found = [int(one.classes) for one in joined_targets(written, "refseg")]
    assert found == list(range(sum(len(one.targets) for one in written)))
    together = joined_targets([write(words[index], "genseg", generator(index)) for index in range(3)], "genseg")
    assert len(together) == 3 and all(0 in one.classes or 1 in one.classes or len(one.classes) for one in together)


def test_a_drawn_scale_moves_masks_with_the_picture(words):
    worded = words[0]
    plain, target = closed_target(worded, words.categories, 32, None)
    large, moved = closed_target(worded, words.categories, 32, 2.0)
    same_again, fixed = closed_target(worded, words.categories, 32, 1.0)
    assert same(plain, same_again) and same(target.masks, fixed.masks)
    assert not same(plain, large) and len(moved.classes) <= len(target.classes)
    middle = target.masks[:, 8:24, 8:24].repeat_interleave(2, 1).repeat_interleave(2, 2)
    kept = middle.flatten(1).any(1)
    agree = (middle[kept] == moved.masks).float().mean() if kept.sum() == len(moved.masks) else 0
    assert agree > 0.9


def test_layouts_of_other_data_sets_have_words_as_far_as_captions_go():
    class Cats:
        class_captions = ("cat", "dog", "sky")

        def __len__(self):
            return 1

        def __getitem__(self, index):
            from seg2any.data.dataset import Sample
            from seg2any.layout import Layout

            masks = np.zeros((3, 8, 8), bool)
            masks[0, :2], masks[1, 3:5], masks[2, 6:] = True, True, True
            caption = "A black cat sees a cat under the sky."
            return Sample(np.zeros((8, 8, 3), np.uint8), Layout(masks, ("cat", "cat", "sky"), caption, overlap="share"))

        def key(self, index):
            return "one"

        def fingerprint(self):
            return "1"

    words = words_of(Cats())
    worded = words[0]
    assert words.categories == ("cat", "dog", "sky") and worded.names == ("cat", "cat", "sky")
    assert [one.text for one in worded.phrases["captions"]] == ["sky"] and not worded.questions
    assert [worded.told.text[a:b] for a, b in worded.told.spans] == ["cat", "sky"]
    assert offers(worded, "gcgseg") and not offers(worded, "reaseg")
