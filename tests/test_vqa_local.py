"""The local judge of region questions: a tiny random Qwen2-VL through the real code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from seg2any.evaluation.vqa.local import SOURCE, LocalJudge
from seg2any.evaluation.vqa.questions import Question, about_caption
from seg2any.system.errors import UserError
from seg2any.system.patience import NoAnswer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
WORDS = ["[UNK]", "yes", "Yes", "no", "No", "maybe", "a", "cat", "user", "assistant", "is", "it"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}


def qwen3() -> Qwen3VLForConditionalGeneration:
    """Build a tiny network of the default judge's family, whose patches have 16 pixels."""
    narrow = {"hidden_size": 16, "intermediate_size": 16}
    config = Qwen3VLConfig(
        text_config={
            **narrow, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "vocab_size": len(VOCABULARY),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            **narrow, "depth": 1, "num_heads": 2, "out_hidden_size": 16, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=VOCABULARY["<|image_pad|>"], video_token_id=VOCABULARY["<|video_pad|>"],
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config)


def save(folder: Path, template: str | None = TEMPLATE) -> Path:
    vocab = VOCABULARY
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", additional_special_tokens=SPECIAL, chat_template=template
    )
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(vocab), "bos_token_id": 0, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1},
        image_token_id=vocab["<|image_pad|>"], video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"], vision_end_token_id=vocab["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    for weight in model.parameters():
        weight.data.mul_(4)  # makes answers differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> LocalJudge:
    return LocalJudge(str(save(tmp_path_factory.mktemp("vlm"))))


def question(seed: int = 0, text: str = "is it a cat") -> Question:
    image = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), np.uint8)
    return Question("s", "spatial", "a cat", text, (image,))


def test_probability_of_yes_is_the_models_own(judge: LocalJudge):
    asked = question()
    inputs = judge.chat.inputs(asked.text, asked.images)
    words = judge.chat.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    pads = (56 // 28) * (84 // 28)
    places = ["<|im_start|>", "user", "<|vision_start|>", *["<|image_pad|>"] * pads, "<|vision_end|>"]
    assert words == [*places, "is", "it", "a", "cat", "<|im_end|>", "<|im_start|>", "assistant"]
    with torch.no_grad():
        scores = torch.exp(judge.chat.model(**inputs).logits[0, -1])
    vocab = judge.chat.tokenizer.get_vocab()
    probabilities = {word: float(scores[index] / scores.sum()) for word, index in vocab.items()}
    yes, no = (probabilities[word] + probabilities[word.title()] for word in ("yes", "no"))
    answer = judge.answer(asked)
    assert answer == {"yes": pytest.approx(yes / (yes + no), rel=1e-4), "by": "probabilities"}
    assert judge.answer(question(1))["yes"] != pytest.approx(answer["yes"], rel=1e-4)  # the answer depends on the image
    assert judge.answer(question(text="a cat is it"))["yes"] != pytest.approx(answer["yes"], rel=1e-4)


def test_a_reply_without_json_is_refused(judge: LocalJudge):
    with pytest.raises(NoAnswer, match="no JSON"):
        judge.answer(about_caption("a cat"))


def test_other_models_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="hf download Qwen/"):
        LocalJudge(str(tmp_path))
    with pytest.raises(UserError, match="no chat template"):
        LocalJudge(str(save(tmp_path / "vlm", template="{{ messages }}")))


def test_the_family_of_the_default_judge_answers(tmp_path: Path):
    save(tmp_path)
    torch.manual_seed(0)
    model = qwen3()
    for weight in model.parameters():
        weight.data.mul_(4)
    model.save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}).save_pretrained(
        tmp_path
    )
    judge = LocalJudge(str(tmp_path))
    answers = [judge.answer(question(seed))["yes"] for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2] and 0 < answers[0] < 1
    assert "Qwen3-VL" in SOURCE
