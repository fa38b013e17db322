"""Strings of the second set, and the cases made of them."""

from __future__ import annotations

import numpy as np

from tests.parity_xsam.second import text
from tests.parity_xsam.second.tokens import OWN, Vocabulary

WORDS = """zebra crossing Traffic-light river-other grass-merged snow-stuff Curtain-other-merged ÉTAGÈRE sea wine glass
house keeper the lady with an umbrella Two Birds on wire third cup from left what could one use to cut bread Which of
them barks at night because it has teeth and hands Ω naïve"""
CATEGORIES = [
    "zebra-crossing",
    "Traffic-light",
    "grass-merged",
    "river-other",
    "ÉTAGÈRE",
    "Curtain-other-merged",
    "sea",
]
PHRASES = ["  The Lady with an Umbrella", "third cup from LEFT  ", "Ωmega naïve", "two birds on a wire", "sea"]
QUESTIONS = ["What could one use to cut bread? ", " Which of them barks at night?", "who is naïve"]
REASON = "It has teeth."
CAPTION = "The lady and two birds on a wire, by the sea"
SPANS = [(0, 8), (13, 22), (26, 32), (37, 44)]
CHATS = [
    ["human", "<image>\n Which cup?  ", "gpt", "The third one, from the left."],
    ["gpt", "skipped", "human", "Hello, keeper", "gpt", "Hello.", "human", "the sea? <image>", "gpt", "No: wine."],
    ["human", "tell me of umbrellas", "gpt", "they keep  off  the snow"],
]


def examples(rng: np.random.Generator) -> dict[str, dict]:
    """Draw what data sets hand over, by the case's name."""

    def some(several: list, least: int = 1) -> list:
        count = int(rng.integers(least, len(several) + 1))
        return [several[place] for place in rng.permutation(len(several))[:count]]

    def spans(count: int) -> list[dict]:
        return [{"tokens_positive": list(SPANS[place])} for place in sorted(rng.permutation(len(SPANS))[:count])]

    cases = {}
    for number in range(2):
        cases |= {
            f"genseg_{number}": {"sampled_cats": some(CATEGORIES), "caption": None},
            f"ovseg_{number}": {"sampled_cats": some(CATEGORIES), "caption": None},
            f"genseg_told_{number}": {"sampled_cats": some(CATEGORIES), "caption": "A lady, by the sea."},
            f"refseg_{number}": {"sampled_sents": some(PHRASES, 2)},
            f"reaseg_whole_{number}": {"sampled_sents": some(QUESTIONS), "is_sentence": True, "explain": None},
            f"reaseg_short_{number}": {"sampled_sents": some(QUESTIONS), "is_sentence": False, "explain": None},
            f"reaseg_explained_{number}": {
                "sampled_sents": some(QUESTIONS),
                "is_sentence": True,
                "explain": "It has teeth.",
            },
            f"gcgseg_{number}": {"caption": CAPTION, "annotations": spans(2 + number)},
            f"vgdseg_{number}": {"sampled_labels": list(range(int(rng.integers(1, 5))))},
            f"intseg_{number}": {"sampled_labels": [4]},
        }
    for number, chat in enumerate(CHATS):
        pairs = zip(chat[::2], chat[1::2], strict=True)
        cases[f"imgconv_{number}"] = {"conversations": [{"from": who, "value": what} for who, what in pairs]}
    return cases


class Made:
    """The text of a set: its vocabulary, its lists of wordings and its cases."""

    def __init__(self, rng: np.random.Generator):
        self.lists = text.published_wordings()
        wordings = [one for two in self.lists.values() for several in two.values() for one in several]
        plain = [one.replace(text.FILLED, "") for one in wordings]
        self.words = Vocabulary([WORDS, *plain], int(rng.integers(20, 140)))
        self.cases = {}
        for name, example in examples(rng).items():
            self._add(name, example, rng)

    def _add(self, name: str, example: dict, rng: np.random.Generator) -> None:
        """Add a case with its answer, a part of it, and its prompt alone with and without a beginning mark."""
        task = name.split("_")[0]
        about = {"task": task, "example": example, "explain_draw": float(rng.random())}
        about["choice_indices"] = rng.integers(0, 12, int(rng.integers(1, 7))).tolist()
        whole = self.made(about | {"with_output": True})
        self.cases[f"{name}_answered"] = whole
        cut = int(rng.integers(20, len(whole["input_ids"]) + 1))
        self.cases[f"{name}_cut"] = self.made(about | {"with_output": True, "max_length": cut})
        if task != "imgconv":
            prompt = about | {"with_output": False, "example": {"sampled_sents": [], **example}}
            if task in ("refseg", "reaseg"):
                prompt["example"] = example | {"sampled_sents": example["sampled_sents"][:1]}
            self.cases[f"{name}_asked"] = self.made(prompt)
            if name.endswith("_0"):
                self.cases[f"{name}_asked_without_bos"] = self.made(prompt, bos=False)

    def made(self, about: dict, bos: bool = True) -> dict:
        """Make a case, named as recorded."""
        turns = text.turns_of(about, self.lists)
        about.setdefault("max_length", text.LONGEST)
        found = text.encoded(self.words, turns, about["with_output"], bos, about["max_length"])
        said = [{"input": question, "output": answer} for question, answer in turns]
        return about | {"conversation": said, "templated": []} | found

    def ids(self) -> dict:
        seg, begin, end = (self.words.ids[one] for one in OWN)
        return {
            "base_length": self.words.base,
            "tokenizer_length": len(self.words.names),
            "bos": self.words.ids["<s>"],
            "eos": self.words.ids["<|endoftext|>"],
            "image": text.IMAGE,
            "region": text.REGION,
            "ignore": text.IGNORED,
            "pad": 0,
            "seg": seg,
            "pstart": begin,
            "pend": end,
        }

    def odd(self, rng: np.random.Generator) -> dict:
        """Number sequences of marks and text in any order."""
        of_marks = [self.words.ids[one] for one in OWN]
        rows = [[*of_marks[1:2], 3], [7, of_marks[2]], [4, 4, 4], of_marks[1:], [of_marks[0]] * 3]
        rows += [rng.choice([*of_marks, 5, 6], int(rng.integers(1, 15))).tolist() for _ in range(12)]
        return {f"row_{number}": {"input_ids": row, **text.numbers(self.words, row)} for number, row in enumerate(rows)}

    def batches(self) -> dict:
        names = {
            "categories": ["genseg_0_answered", "genseg_told_1_answered", "genseg_1_answered"],
            "phrases": ["refseg_1_answered", "refseg_0_asked"],
            "talk": ["imgconv_2_answered", "imgconv_0_answered", "imgconv_1_answered"],
            "one": ["gcgseg_0_cut"],
        }
        return {name: text.collated([self.cases[one] for one in several], several) for name, several in names.items()}

    def wordings(self) -> dict:
        """Fill the wordings in with other strings than the recorded ones."""
        asked = {"genseg": "sea", "genseg_caption": "a bus", "refseg": "the third, from the left"}
        told = {"gcgseg": "The <p>red cup</p>  here.", "genseg_caption": "It rains.", "reaseg_explain": "By the teeth."}
        found = {}
        for name, two in self.lists.items():
            regions = ", ".join([text.marked("<region>")] * 2)
            filling = regions if name == "vgdseg" else text.marked(asked.get(name, "which one?"))
            found[name] = {
                "questions": ["<image>\n" + one.replace(text.FILLED, filling) for one in two["questions"]],
                "answers": [one.replace(text.FILLED, told.get(name, "")) for one in two["answers"]],
            }
        return found

    def file(self, rng: np.random.Generator) -> dict:
        """Describe all of it as text.json does."""
        instruction = text.QUESTION.format("{input}")
        ending = {"SEP": text.SEPARATOR, "STOP_WORDS": [text.ENDING], "SUFFIX": text.ENDING}
        return {
            "cases": self.cases,
            "batches": self.batches(),
            "odd_spans": self.odd(rng),
            "wordings": self.wordings(),
            "template": {"INSTRUCTION": instruction, **ending},
            "ids": self.ids(),
            "special_tokens": list(OWN),
        }
