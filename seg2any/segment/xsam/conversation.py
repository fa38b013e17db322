"""Turn conversations into token ids, labels and the numbers of phrases, and several of them into a batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seg2any.segment.xsam import splice
from seg2any.segment.xsam.asking import Turn
from seg2any.segment.xsam.spans import Marks
from seg2any.segment.xsam.wordings import PICTURE, REGION

FILLING = 0  # the id behind a shorter conversation of a batch
MARKERS = {PICTURE: splice.PICTURE, REGION: splice.REGION}


@dataclass(frozen=True)
class Chat:
    """The form of the conversations that a language model knows.

    question   around a question, `{}` being its place
    ending     behind an answer: the model has learnt to stop there
    separator  between turns
    """

    question: str
    ending: str
    separator: str = "\n"


CHATS: Mapping[str, Chat] = MappingProxyType(
    {
        "phi3": Chat("<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>"),
        "qwen": Chat("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        "plain": Chat("Question: {}\nAnswer: ", "</s>"),
    }
)


@dataclass(frozen=True)
class Encoded:
    """A conversation, a number for each token; see `splice.Tokens`."""

    ids: list[int]
    labels: list[int]
    cond_ids: list[int] | None
    seg_ids: list[int]


class Encoder:
    """The tokenizer of a model, with the form of its conversations and its own tokens.

    bos  begin with the tokenizer's bos token, where it has one: as in training, but not in the published demo
    """

    def __init__(self, tokenizer: object, chat: Chat, marks: Marks, max_length: int, bos: bool = True):
        self.tokenizer, self.chat, self.marks, self.max_length = tokenizer, chat, marks, max_length
        first = tokenizer.bos_token_id if bos else None
        self.first = [] if first is None else [first]

    def encode(self, turns: Sequence[Turn], answered: bool) -> Encoded:
        """Encode turns; only answers have labels.

        answered  False for a question to the model: of its last turn the question is taken alone
        """
        ids, labels = [*self.first], [splice.IGNORED] * len(self.first)
        for number, turn in enumerate(turns, start=1):
            question = self._pieces(self.chat.question.format(turn.question))
            ids += question
            labels += [splice.IGNORED] * len(question)
            if not answered and number == len(turns):
                break
            answer, separator = self.answer(turn), self._pieces(self.chat.separator)
            ids += answer + separator
            labels += answer + [splice.IGNORED] * len(separator)
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        return Encoded(ids, labels, self.marks.phrase_numbers(ids), self.marks.seg_numbers(ids))

    def answer(self, turn: Turn) -> list[int]:
        """Encode the answer of a turn, with its ending."""
        return self._pieces(turn.answer + self.chat.ending)

    def _pieces(self, text: str) -> list[int]:
        """Encode the text between markers, each piece alone."""
        return [one for piece in re.split(f"({PICTURE}|{REGION})", text) for one in self._piece(piece)]

    def _piece(self, text: str) -> Iterator[int]:
        if text in MARKERS:
            yield MARKERS[text]
        elif text:
            yield from self.tokenizer.encode(text, add_special_tokens=False)


def collate(conversations: Sequence[Encoded]) -> splice.Tokens:
    """Make a batch of conversations; shorter ones are filled up at the right."""

    def joined(values: Sequence[list[int]], filling: int) -> Tensor:
        return pad_sequence([torch.tensor(one) for one in values], batch_first=True, padding_value=filling)

    lengths = torch.tensor([len(one.ids) for one in conversations])
    ids = joined([one.ids for one in conversations], FILLING)
    conds = [one.cond_ids for one in conversations]
    cond_ids = None
    if any(one is not None for one in conds):
        filled = [own or [splice.NONE] * len(one.ids) for own, one in zip(conds, conversations, strict=True)]
        cond_ids = joined(filled, splice.NONE)
    return splice.Tokens(
        ids,
        torch.arange(ids.shape[1]) < lengths[:, None],
        joined([one.labels for one in conversations], splice.IGNORED),
        cond_ids,
        joined([one.seg_ids for one in conversations], splice.NONE),
    )
