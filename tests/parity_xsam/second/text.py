"""Cases of wordings, conversations, their ids and numbers, and batches of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.golden_root import XSAM_SUBSET
from tests.parity_xsam.second.tokens import OWN, Vocabulary

IMAGE, REGION, IGNORED, NONE = -200, -300, -100, -1
QUESTION, ENDING, SEPARATOR = "<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>", "\n"
LONGEST = 5000
FILLED = "\0"  # the place of what a wording is filled with


def published_wordings() -> dict[str, dict[str, list[str]]]:
    """Read the recorded wordings, which are facts, with places for what they are filled with."""
    recorded = json.loads((XSAM_SUBSET / "text.json").read_text(encoding="utf-8"))["wordings"]
    lists = {}
    for name, two in recorded.items():
        given = re.compile(r"<p>.*</p>")
        told = re.compile(r"^(a <p>b</p>  c|CAPTION\.|EXPLAIN)(?= )")
        lists[name] = {
            "questions": [given.sub(FILLED, one.removeprefix("<image>\n")) for one in two["questions"]],
            "answers": [told.sub(FILLED, one) for one in two["answers"]],
        }
    return lists


class Choice:
    """Choices by recorded numbers, which are used again from the first one."""

    def __init__(self, indices: list[int]):
        self.indices, self.made = indices, 0

    def __call__(self, several: list[str]) -> str:
        index = self.indices[self.made % len(self.indices)]
        self.made += 1
        return several[index % len(several)]


def marked(text: str) -> str:
    return f"<p>{text}</p>"


def class_name(name: str) -> str:
    for ending in ("-merged", "-other", "-stuff"):
        name = name.replace(ending, "")
    return name.replace("-", " ").lower()


def turns_of(about: dict, lists: dict) -> list[tuple[str, str]]:
    """Word a conversation: questions and answers, those of a prompt alone being ""."""
    task, example, choose = about["task"], about["example"], Choice(about["choice_indices"])

    def ask(kind: str, filling: str, told: str = "") -> tuple[str, str]:
        question = choose(lists[kind]["questions"]).replace(FILLED, filling)
        answer = choose(lists[kind]["answers"]).replace(FILLED, told) if about["with_output"] else ""
        return question, answer

    if task in ("genseg", "ovseg"):
        asked = ", ".join(marked(class_name(one)) for one in example["sampled_cats"])
        caption = example.get("caption")
        turns = [ask("genseg_caption", asked, caption) if caption else ask("genseg", asked)]
    elif task == "refseg":
        turns = [ask("refseg", marked(one.strip().lower())) for one in example["sampled_sents"]]
    elif task == "reaseg":
        turns = []
        for one in example["sampled_sents"]:
            turns.append(ask("reaseg_sentence" if example["is_sentence"] else "reaseg_phrase", marked(one.strip())))
            if example["explain"] and about["explain_draw"] < 0.5:
                turns[-1] = ask("reaseg_explain", marked(one.strip()), example["explain"])
    elif task == "gcgseg":
        turns = [ask("gcgseg", "", described(example))]
    elif task in ("vgdseg", "intseg"):
        turns = [ask("vgdseg", ", ".join([marked("<region>")] * len(example["sampled_labels"])))]
    else:
        said = [one["value"] for one in example["conversations"]]
        said = said[1:] if example["conversations"][0]["from"] == "gpt" else said
        turns = list(zip(said[::2], said[1::2], strict=True))
        return [(to_the_front(question), answer) for question, answer in turns]
    return [(f"<image>\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def to_the_front(question: str) -> str:
    if "<image>" not in question:
        return question
    return "<image>\n" + question.replace("<image>", "").strip()


def described(example: dict) -> str:
    """Mark the phrases of a caption, each mark being followed by one space more."""
    caption = example.get("caption", "")
    for first, last in sorted((one["tokens_positive"] for one in example.get("annotations", ())), reverse=True):
        caption = f"{caption[:first]}{marked(caption[first:last])} {caption[last:]}"
    return caption.strip()


def pieces(words: Vocabulary, text: str) -> list[int]:
    """Encode text, markers of pictures and regions by themselves."""
    ids = []
    for piece in re.split("(<image>|<region>)", text):
        ids += {"<image>": [IMAGE], "<region>": [REGION]}.get(piece) or (words.encode(piece) if piece else [])
    return ids


def encoded(words: Vocabulary, turns: list[tuple[str, str]], answered: bool, bos: bool, longest: int) -> dict:
    """Encode a conversation, named as recorded."""
    ids, labels = ([words.ids["<s>"]], [IGNORED]) if bos else ([], [])
    for question, answer in turns:
        asked = pieces(words, QUESTION.format(question))
        ids, labels = ids + asked, labels + [IGNORED] * len(asked)
        if answered:
            told, ending = pieces(words, answer + ENDING), pieces(words, SEPARATOR)
            ids, labels = ids + told + ending, labels + told + [IGNORED] * len(ending)
    ids, labels = ids[:longest], labels[:longest]
    return {"input_ids": ids, "labels": labels, **numbers(words, ids)}


def numbers(words: Vocabulary, ids: list[int]) -> dict:
    """Number the phrases by the rank of their marks, and the <SEG> tokens."""
    seg, begin, end = (words.ids[one] for one in OWN)
    begins = [place for place, one in enumerate(ids) if one == begin]
    ends = [place for place, one in enumerate(ids) if one == end]
    conds, segs, seen = [NONE] * len(ids), [NONE] * len(ids), 0
    for number, (first, last) in enumerate(zip(begins, ends, strict=False)):
        for place in range(first, last + 1):
            conds[place] = number
    for place, one in enumerate(ids):
        if one == seg:
            segs[place], seen = seen, seen + 1
    return {"cond_ids": conds if begins or ends else None, "seg_ids": segs}


def collated(samples: list[dict], names: list[str]) -> dict:
    """Fill samples up at the right; the filling counts as text."""
    longest = max(len(one["input_ids"]) for one in samples)
    found = {"samples": names, "attention_mask": [[True] * longest] * len(samples)}
    for name, filling in (("input_ids", 0), ("labels", IGNORED), ("cond_ids", NONE), ("seg_ids", NONE)):
        if all(one[name] is not None for one in samples):
            found[name] = [one[name] + [filling] * (longest - len(one[name])) for one in samples]
    return found


def write(folder: Path, text: dict, words: Vocabulary) -> None:
    """Write text.json and tokenizer.json."""
    (folder / "text.json").write_text(json.dumps(text), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(words.file()), encoding="utf-8")
