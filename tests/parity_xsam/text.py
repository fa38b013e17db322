"""Wordings, conversations, their ids and batches of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from seg2any.segment.xsam import asking, wordings
from seg2any.segment.xsam.asking import Turn, Wording
from seg2any.segment.xsam.conversation import CHATS, FILLING, Encoded, Encoder, collate
from seg2any.segment.xsam.spans import Marks
from seg2any.segment.xsam.splice import IGNORED, PICTURE, REGION
from tests.parity_xsam.recorded import Case, text, tokenizer

FILE = "text"


def recorded(case: Case) -> dict:
    part, _, name = case.name.partition("/")
    return text()[part][name] if name else text()[part]


def marks() -> Marks:
    ids = text()["ids"]
    return Marks(ids["seg"], ids["pstart"], ids["pend"])


def encoder(max_length: int = 2319, bos: bool = True) -> Encoder:
    return Encoder(tokenizer(), CHATS["phi3"], marks(), max_length, bos)


def wording_of(about: dict) -> Wording:
    """Choose as recorded: the k-th choice takes the element that the k-th index names."""
    asked = []

    def choose(several: Sequence[str]) -> str:
        indices = about["choice_indices"]
        asked.append(indices[len(asked) % len(indices)] % len(several))
        return several[asked[-1]]

    return Wording(choose, lambda: about.get("explain_draw", 1.0))


def turns_of(about: dict) -> list[Turn]:
    task, example, answered, wording = about["task"], about["example"], about["with_output"], wording_of(about)
    if task in ("genseg", "ovseg"):
        return asking.ask_categories(example["sampled_cats"], wording, answered, example.get("caption"))
    if task == "refseg":
        return asking.ask_phrases(example["sampled_sents"], wording, answered)
    if task == "reaseg":
        texts, whole = example["sampled_sents"], example["is_sentence"]
        return asking.ask_questions(texts, wording, answered, whole, [example["explain"]] * len(texts))
    if task == "gcgseg":
        spans = [one["tokens_positive"] for one in example.get("annotations", ())]
        return asking.ask_description(wording, example["caption"] if answered else None, spans)
    if task in ("vgdseg", "intseg"):
        return asking.ask_regions(len(example["sampled_labels"]), wording, answered)
    assert task == "imgconv"
    return asking.chat([(one["from"], one["value"]) for one in example["conversations"]], answered)


def encoded(name: str) -> Encoded:
    about = text()["cases"][name]
    bos = not name.endswith("without_bos")
    return encoder(about.get("max_length", 2319), bos).encode(turns_of(about), about["with_output"])


def conversation_case(case: Case) -> None:
    about = recorded(case)
    turns = turns_of(about)
    if "templated" in about:
        assert [(turn.question, turn.answer) for turn in turns] == [
            (one["input"], one["output"]) for one in about["conversation"]
        ]
    else:
        questions = [CHATS["phi3"].question.format(turn.question) for turn in turns]
        assert questions == [one["input"] for one in about["conversation"]]
    found = encoded(case.name.partition("/")[2])
    for name, ours in (("input_ids", "ids"), ("labels", "labels"), ("cond_ids", "cond_ids"), ("seg_ids", "seg_ids")):
        if name == "seg_ids" and about.get(name) is None:
            assert set(found.seg_ids) == {-1}
        else:
            assert getattr(found, ours) == about[name], name


def template_case(case: Case) -> None:
    about, chat = recorded(case), CHATS["phi3"]
    assert chat.question.format("QUESTION") == about["INSTRUCTION"].format(input="QUESTION")
    assert [chat.ending] == about["STOP_WORDS"] and chat.ending == about["SUFFIX"] and chat.separator == about["SEP"]


def ids_case(case: Case) -> None:
    about = recorded(case)
    assert (about["image"], about["region"], about["ignore"], about["pad"]) == (PICTURE, REGION, IGNORED, FILLING)
    assert len(tokenizer()) == about["tokenizer_length"] == about["base_length"] + len(wordings.SPECIAL_TOKENS)
    found = tokenizer().convert_tokens_to_ids(list(wordings.SPECIAL_TOKENS))
    assert found == [about["seg"], about["pstart"], about["pend"]]
    assert (tokenizer().bos_token_id, tokenizer().eos_token_id) == (about["bos"], about["eos"])


def special_tokens_case(case: Case) -> None:
    assert list(wordings.SPECIAL_TOKENS) == recorded(case)


def odd_spans_case(case: Case) -> None:
    about = recorded(case)
    assert marks().phrase_numbers(about["input_ids"]) == about["cond_ids"]
    assert marks().seg_numbers(about["input_ids"]) == about["seg_ids"]


def batch_case(case: Case) -> None:
    """Published: the filling counts as text, which a causal model does not see from before it; here it is masked."""
    about = recorded(case)
    found = collate([encoded(name) for name in about["samples"]])
    names = {"input_ids": found.ids, "labels": found.labels, "cond_ids": found.cond_ids, "seg_ids": found.seg_ids}
    for name, mine in names.items():
        assert (mine is None) == (name not in about), name
        if mine is not None:
            assert torch.equal(mine, torch.tensor(about[name])), name
    assert all(map(all, about["attention_mask"]))
    lengths = [len(text()["cases"][name]["input_ids"]) for name in about["samples"]]
    assert found.mask.sum(1).tolist() == lengths


LISTS = {
    "gcgseg": (wordings.DESCRIPTIONS, wordings.DESCRIPTION_ANSWERS),
    "genseg_caption": (wordings.DESCRIBED_CATEGORIES, wordings.DESCRIBED_ANSWERS),
    "genseg": (wordings.CATEGORIES, wordings.RESULT_ANSWERS),
    "reaseg_explain": (wordings.EXPLAINED_SENTENCES, wordings.EXPLAINED_ANSWERS),
    "reaseg_phrase": (wordings.SHORT_SENTENCES, wordings.MASK_ANSWERS),
    "reaseg_sentence": (wordings.SENTENCES, wordings.MASK_ANSWERS),
    "refseg": (wordings.PHRASES, wordings.MASK_ANSWERS),
    "vgdseg": (wordings.REGIONS, wordings.RESULT_ANSWERS),
}
MARKED = re.compile("<p>(.*?)</p>")


def filling(wording: str, told: str) -> str:
    """Return what a recorded wording is filled with."""
    first, _, last = wording.partition("{}")
    assert told.startswith(first) and told.endswith(last)
    return told[len(first) : len(told) - len(last)]


def wordings_case(case: Case) -> None:
    about, name = recorded(case), case.name.partition("/")[2]
    questions, answers = LISTS[name]
    asked = filling(f"<image>\n{questions[0]}", about["questions"][0])
    told = filling(answers[0], about["answers"][0])
    assert asked == ", ".join(map(wordings.phrase, MARKED.findall(asked)))
    if name == "gcgseg":  # one phrase is marked, with a space more
        (phrase,) = MARKED.finditer(told)
        plain = told[: phrase.start()] + phrase[1] + told[phrase.end() + 1 :]
        assert told == asking.mark_phrases(plain, [(phrase.start(), phrase.start() + len(phrase[1]))])
    assert [f"<image>\n{one.format(asked)}" for one in questions] == about["questions"]
    assert [one.format(told) for one in answers] == about["answers"]


CHECKS = {
    "cases/": conversation_case,
    "batches/": batch_case,
    "odd_spans/": odd_spans_case,
    "wordings/": wordings_case,
    "template": template_case,
    "ids": ids_case,
    "special_tokens": special_tokens_case,
}
