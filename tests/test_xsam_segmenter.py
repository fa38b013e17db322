"""X-SAM asked in batches, read and generated, and behind `segment --method xsam`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.commands import segment
from seg2any.segment.segmenter import Prompt
from seg2any.segment.xsam import asking, prompts
from seg2any.segment.xsam.conditions import together
from seg2any.segment.xsam.config import XSamConfig
from seg2any.segment.xsam.conversation import Encoded, collate
from seg2any.segment.xsam.generation import Generated, generate
from seg2any.segment.xsam.model import Pictures, XSam
from seg2any.segment.xsam.pictures import Frame
from seg2any.segment.xsam.segmenter import Choices, XSamSegmenter
from seg2any.segment.xsam.speaker import Answer, Question, Speaker
from seg2any.segment.xsam.splice import PICTURE, splice
from seg2any.system.errors import UserError
from tests.infer_command import files
from tests.parity_xsam.batches import recorded_batch, seen_of
from tests.parity_xsam.recorded import close, tensors_of, tokenizer, whole_model
from tests.parity_xsam.text import encoder

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
TASKS = ("genseg", "gcgseg", "imgconv")
END = 2e-5


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(whole_model(), encoder())


def asked(task: str) -> Encoded:
    """Return the recorded question of a task."""
    x = recorded_batch(f"predict_{task}").x
    rows = {name: x[f"in_{name}"][0].tolist() if f"in_{name}" in x else None for name in ("cond_ids", "seg_ids")}
    return Encoded(x["in_input_ids"][0].tolist(), x["in_labels"][0].tolist(), rows["cond_ids"], rows["seg_ids"])


@torch.inference_mode()
def generated(speaker: Speaker, tasks: tuple[str, ...]) -> tuple[list[Generated], list[Answer]]:
    model = speaker.model
    seen = [seen_of(recorded_batch(f"predict_{task}"), model).tokens[0] for task in tasks]
    spliced = splice(collate([asked(task) for task in tasks]), model.get_input_embeddings(), seen)
    found = generate(model.llm, spliced, speaker.ends, 60)
    return found, speaker.heard(spliced, found)


def test_questions_of_several_lengths_are_answered_in_one_batch_as_recorded_alone(speaker: Speaker):
    together, answers = generated(speaker, TASKS)
    assert len({len(asked(task).ids) for task in TASKS}) == len(TASKS)
    for task, one, answer in zip(TASKS, together, answers, strict=True):
        assert one.ids == recorded_batch(f"predict_{task}").x["generated_ids"].tolist()
        assert answer.shows == (task != "imgconv")
        if answer.shows:
            recorded = tensors_of("condition_embeddings", f"generated_{task}/")
            close(one.states[None], recorded["states"], END)
            close(answer.found, recorded["pool0_out_0"], END)


@torch.inference_mode()
def test_generating_and_reading_an_answer_give_the_same_conditions(speaker: Speaker):
    for task in ("gcgseg",):
        (given,), (answer,) = generated(speaker, (task,))
        question, model = asked(task), speaker.model
        ids = question.ids + given.ids
        whole = Encoded(ids, [-100] * len(ids), model.marks.phrase_numbers(ids), model.marks.seg_numbers(ids))
        seen = seen_of(recorded_batch(f"predict_{task}"), model)
        spliced = model.splice(collate([whole]), seen)
        states = model(spliced)[1][0]
        for found, numbers in ((answer.found, spliced.cond_ids[0]), (answer.seg, spliced.seg_ids[0])):
            for number, vector in enumerate(found):
                close(vector, states[numbers == number].mean(0), END)
        assert len(answer.found) == int(spliced.cond_ids.max()) + 1


def test_an_answer_is_over_at_the_end_of_a_turn_or_of_all_text(speaker: Speaker):
    ending = tokenizer().encode("<|end|>", add_special_tokens=False)
    assert speaker.ends([5, *ending]) and speaker.ends([tokenizer().eos_token_id])
    assert not speaker.ends([5]) and not speaker.ends([*ending, 5])


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        (Prompt(phrases=("a dog", "the bench", "a tree")), 3),
        (Prompt(categories=("person", "dog", "sky")), 3),
        (Prompt(points=np.array([[[0.2, 0.3, 1]], [[1.0, 1.0, 1]]])), 2),
        (Prompt(boxes=np.array([[0.1, 0.1, 0.5, 0.6]]), phrases=("a thing",)), 1),
        (Prompt(masks=np.eye(8, dtype=bool)[None]), 1),
        (Prompt(question="which animal guards the house?"), 1),
        (Prompt(describe=True), None),
    ],
)
def test_every_prompt_gives_a_region_for_each_of_its_entries(prompt: Prompt, count: int | None, speaker: Speaker):
    found = XSamSegmenter(speaker, "tiny", Choices(most=8)).segment(IMAGE, prompt)
    assert found.size == IMAGE.shape[:2] and found.overlap == "share" and found.source == "X-SAM (tiny)"
    if count is not None:
        assert len(found.masks) == count
        names = prompt.phrases or prompt.categories or ((prompt.question,) if prompt.question else prompt.captions())
        assert found.captions == names
    for mask, score in zip(found.masks, found.scores, strict=True):
        assert 0 <= score <= 1 and (score > 0 or not mask.any())
    if prompt.categories:
        assert (found.masks.sum(0) <= 1).all()


def test_a_description_comes_with_the_whole_answer(speaker: Speaker):
    segmenter = XSamSegmenter(speaker, "tiny")
    description, found = segmenter.describe(IMAGE), segmenter.segment(IMAGE, Prompt(describe=True))
    assert np.array_equal(description.layout.masks, found.masks) and description.layout.caption == found.caption
    assert "<SEG>" in description.answer and description.answer.endswith("<|end|>")


def test_the_size_of_a_batch_changes_nothing(speaker: Speaker):
    prompt = Prompt(phrases=("a dog", "the bench under a small tree"))
    one, two = (XSamSegmenter(speaker, "tiny", Choices(most=8, batch=batch)).segment(IMAGE, prompt) for batch in (1, 8))
    assert np.array_equal(one.masks, two.masks) and np.allclose(one.scores, two.scores, atol=1e-5)


def test_an_empty_prompt_and_a_point_outside_are_refused(speaker: Speaker):
    with pytest.raises(UserError, match="the prompt holds nothing; give phrases or categories"):
        XSamSegmenter(speaker, "tiny").segment(IMAGE, Prompt())
    frame = Frame.of((50, 100), 64)
    with pytest.raises(UserError, match="cannot be told a point outside"):
        prompts.drawn(Prompt(points=np.array([[[0.5, 0.5, 0.0]]])), frame)
    with pytest.raises(UserError, match="region 2 has no pixel"):
        prompts.drawn(Prompt(masks=np.stack([np.ones((4, 4), bool), np.zeros((4, 4), bool)])), frame)


def test_visual_prompts_lie_where_they_were_drawn():
    frame = Frame.of((50, 100), 64)
    assert frame.scaled == (32, 64)
    box = prompts.drawn(Prompt(boxes=np.array([[0.25, 0.5, 0.5, 1.0], [0.3, 0.3, 0.3, 0.3]])), frame)
    wanted = np.zeros((64, 64), bool)
    wanted[16:32, 16:32] = True
    assert np.array_equal(box[0].numpy(), wanted) and box[1].sum() == 1
    point = prompts.drawn(Prompt(points=np.array([[[0.5, 0.5, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, -1.0]]])), frame)[0]
    assert point[16, 32] and point[31, 63] and not point[32:].any() and not point[0, 0]
    mask = prompts.drawn(Prompt(masks=np.tri(4, dtype=bool)[None]), frame)[0]
    assert mask[31, 0] and not mask[0, 63] and not mask[32:].any()


@pytest.mark.parametrize(
    ("text", "said", "phrases"),
    [
        ("<p> a woman</p>   near <p> a small tree</p>  And <SEG> .<|end|>", "a woman near a small tree",
         ["a woman", "a small tree"]),
        ("A dog. Sure, the segmentation mask is <SEG>.<|end|>", "A dog.", []),
        ("<p>a</p> <p>b The segmentation mask is <SEG>.", "a b", ["a"]),
        ("<SEG> .<|end|>", None, []),
        ("", None, []),
    ],
)  # fmt: skip
def test_answers_are_told_without_marks(text: str, said: str | None, phrases: list[str], speaker: Speaker):
    answer = Answer([], text, asking.phrases_of(text), torch.zeros(0, 1), torch.zeros(0, 1))
    assert XSamSegmenter(speaker, "tiny").said(answer) == said and answer.phrases == phrases


def test_an_answer_without_regions_says_why(speaker: Speaker, monkeypatch):
    segmenter = XSamSegmenter(speaker, "tiny")
    silent = Answer([], "A wall.", [], torch.zeros(0, 1), torch.zeros(0, 1))
    monkeypatch.setattr(segmenter, "_ask", lambda seen, questions: ([silent] * len(questions), [None] * len(questions)))
    for prompt, why in ((Prompt(describe=True), "marks no phrase"), (Prompt(phrases=("a dog",)), "passes the thresh")):
        found = segmenter.segment(IMAGE, prompt)
        assert not found.masks.any() and len(found.notes) == 1 and why in found.notes[0]


def test_turns_that_are_read_can_be_segmented(speaker: Speaker):
    side = speaker.model.segmentor.side
    seen = XSamSegmenter(speaker, "tiny").see(IMAGE, Frame.of(IMAGE.shape[:2], side))
    turns = asking.ask_categories(["dog", "sky"], asking.Wording.usual(), answered=True)
    answers = speaker.read(seen, [Question(turns)])
    (found,) = speaker.segment(seen, [0], answers)
    assert answers[0].shows and found.classes.shape[1] == 3 and answers[0].text.startswith("It is <SEG>")


@pytest.mark.slow
def test_the_command_writes_layouts_captions_and_a_report(speaker: Speaker, tmp_path: Path, capsys):
    speaker.model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")

    def call(*words: object) -> tuple[int, str]:
        fixed = ("--method", "xsam", "--pretrained_model_name_or_path", tmp_path / "model", "--device", "cpu")
        given = [tmp_path / "photo.png", *words, *fixed, "--max_new_tokens", 8, "--overwrite"]
        status = segment.main([str(word) for word in [*given, "--output_path", tmp_path / "out"]], "segment")
        return status, capsys.readouterr().err

    status, _ = call("--phrases", "a dog", "the bench")
    assert status == 0 and files(tmp_path / "out") == ["overlays", "photo.json", "photo.png", "report.md"]
    for words in (("--categories", "dog", "sky"), ("--points", "0.5,0.5"), ("--ask", "what is this?"), ("--describe",)):
        status, _ = call(*words)
        assert status == 0
        assert {"overlays", "photo.json"} <= {*files(tmp_path / "out")}
    status, errors = call()
    assert status == 2 and "must be asked for something" in errors
    status, errors = call("--phrases", "a dog", "--bits", 4)
    assert status == 2 and "--bits 4 needs" in errors
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {"model_type": "phi3"}))
    status, errors = call("--phrases", "a dog")
    assert status == 2 and "describes a model of the type 'phi3'" in errors


@pytest.fixture(scope="module")
def other() -> XSam:
    """Return a random model of other sizes, whose language model is Qwen3 with tied embeddings."""
    torch.manual_seed(0)
    config = XSamConfig(
        sam_config={"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96}
        | {"patch_size": 16, "window_size": 4, "global_attn_indexes": [2], "output_channels": 4, "num_pos_feats": 2},
        siglip_config={"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"image_size": 32, "patch_size": 8},
        mask_config={"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_queries": 5}
        | {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2, "dim_feedforward": 16},
        text_config={"model_type": "qwen3", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
        connector_layers=[1, 2, 3],
        connector_channels=8,
        chat="qwen",
        seg_token_id=37,
        phrase_start_id=38,
        phrase_end_id=39,
    )
    return XSam(config).eval()


@torch.inference_mode()
def test_other_language_models_and_sizes_work_by_config_and_continue_as_transformers_does(other: XSam):
    seen = other.see(Pictures(torch.randn(2, 3, 96, 96), torch.randn(2, 3, 32, 32)))
    assert [tuple(one.shape) for one in seen.maps] == [(2, 6, 12, 12), (2, 12, 6, 6), (2, 24, 3, 3)]
    assert seen.tokens.shape == (2, 16 + 9, 16)
    rows = [[1, PICTURE, 5, 38, 6, 39, 7], [1, 4, PICTURE, 8]]
    conversations = [Encoded(ids, [-100] * len(ids), None, [-1] * len(ids)) for ids in rows]
    spliced = other.splice(collate(conversations), seen)
    found = generate(other.llm, spliced, lambda ids: False, 6)
    for row, one in enumerate(found):
        own = spliced.embeddings[row : row + 1, : int(spliced.mask[row].sum())]
        wanted = other.llm.generate(inputs_embeds=own, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert one.ids == wanted[0].tolist()
        assert len(one.states) == own.shape[1] + 5
    conditions = together([torch.randn(3, 32), torch.randn(1, 32)], [torch.randn(1, 32)] * 2, torch.zeros(1, 32))
    classes, masks = other.segmentor(seen.maps, conditions).answer(96)
    assert classes.shape == (2, 5, 4) and masks.shape == (2, 5, 96, 96)
    assert (classes[1, :, 1:3] == -1e9).all() and (classes[0] > -1e9).all()


def test_a_saved_model_of_other_sizes_is_the_same_when_it_is_opened_again(other: XSam, tmp_path: Path):
    other.save_pretrained(tmp_path)
    again = XSam.from_pretrained(tmp_path)
    mine, theirs = again.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert again.config.chat == "qwen" and again.marks == other.marks
    assert again.llm.lm_head.weight is again.llm.model.embed_tokens.weight
