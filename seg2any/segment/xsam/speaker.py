"""Ask an X-SAM model about pictures, and get its answers with a segmentation for each.

Question --> conversation --> answer, states --> Conditions --> Segmented
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seg2any.segment.xsam.asking import Turn, phrases_of
from seg2any.segment.xsam.conditions import pooled, together
from seg2any.segment.xsam.conversation import Encoder, collate
from seg2any.segment.xsam.generation import MOST, Generated, generate
from seg2any.segment.xsam.model import Seen, XSam
from seg2any.segment.xsam.spans import means
from seg2any.segment.xsam.splice import Spliced, splice


@dataclass(frozen=True)
class Question:
    """A conversation about a picture.

    picture  its number among the encoded ones
    regions  bool [N, H, W] in the square picture of SAM, a visual prompt for each <region>
    """

    turns: Sequence[Turn]
    picture: int = 0
    regions: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """The words of the model, with the states of its phrases and <SEG> tokens.

    phrases  marked in the text, without the marks
    found    [N, D] of the phrases to segment: those of the answer, else those of the question
    seg      [M, D] of the <SEG> tokens
    """

    ids: list[int]
    text: str
    phrases: list[str]
    found: Tensor
    seg: Tensor

    @property
    def shows(self) -> bool:
        """Whether there is something to segment: phrases, and one <SEG> for all of them."""
        return len(self.found) > 0 and len(self.seg) == 1


@dataclass(frozen=True)
class Segmented:
    """Class logits [Q, K], the background last, and mask logits [Q, S, S] of Q queries."""

    classes: Tensor
    masks: Tensor


class Speaker:
    """An X-SAM model with its tokenizer. Numbers of pictures are those of the `Seen` that each call is given."""

    def __init__(self, model: XSam, encoder: Encoder):
        self.model, self.encoder = model, encoder

    @torch.inference_mode()
    def answer(self, seen: Seen, questions: Sequence[Question], most: int = MOST) -> list[Answer]:
        """Answer questions in one batch, with at most so many new tokens each."""
        spliced = self._spliced(seen, questions, answered=False)
        return self.heard(spliced, generate(self.model.llm, spliced, self.ends, most))

    def heard(self, spliced: Spliced, generated: Sequence[Generated]) -> list[Answer]:
        """Understand what was generated: phrases of the answers, else those of the questions, and <SEG> tokens."""
        conds, marks = spliced.cond_ids, self.model.marks
        answers = []
        for row, given in enumerate(generated):
            states = self.model.llm_projector(given.states)
            prompt = len(states) - len(given.ids) + 1
            own = marks.phrase_numbers(given.ids)
            if own is not None:
                found = self._means(states[prompt:], own)
            else:
                found = states[:0] if conds is None else means(states[:prompt], conds[row][spliced.mask[row]])
            seg = self._means(states[prompt:], marks.seg_numbers(given.ids))
            answers.append(self._answer(given.ids, found, seg))
        return answers

    @torch.inference_mode()
    def read(self, seen: Seen, questions: Sequence[Question]) -> list[Answer]:
        """Read questions whose answers are given, in one pass. Phrases of questions and answers count alike."""
        spliced = self._spliced(seen, questions, answered=True)
        _, states = self.model(spliced)
        found, segs = pooled(states, spliced.cond_ids), pooled(states, spliced.seg_ids)
        ids = [self.encoder.answer(question.turns[-1]) for question in questions]
        return [self._answer(*one) for one in zip(ids, found, segs, strict=True)]

    @torch.inference_mode()
    def segment(self, seen: Seen, pictures: Sequence[int], answers: Sequence[Answer]) -> list[Segmented | None]:
        """Segment what answers show, each on its picture; None for an answer that shows nothing."""
        rows = [number for number, answer in enumerate(answers) if answer.shows]
        rows.sort(key=lambda number: pictures[number])
        result: list[Segmented | None] = [None] * len(answers)
        if not rows:
            return result
        conditions = together(
            [answers[row].found for row in rows],
            [answers[row].seg for row in rows],
            self.model.bg_embeds.weight,
        )
        counts = [[pictures[row] for row in rows].count(number) for number in range(len(seen.tokens))]
        predictions = self.model.segmentor(seen.maps, conditions.with_repeats(counts))
        classes, masks = predictions.answer(self.model.segmentor.side)
        for place, row in enumerate(rows):
            width = len(answers[row].found)
            own = torch.cat([classes[place, :, :width], classes[place, :, -1:]], 1)
            result[row] = Segmented(own, masks[place])
        return result

    def _spliced(self, seen: Seen, questions: Sequence[Question], answered: bool) -> Spliced:
        tokens = collate([self.encoder.encode(question.turns, answered) for question in questions])
        tokens = tokens.to(seen.tokens.device)
        own = [seen.tokens[question.picture] for question in questions]
        regions = [
            None if question.regions is None else seen.regions_of(question.picture, question.regions)
            for question in questions
        ]
        return splice(tokens, self.model.get_input_embeddings(), own, regions)

    def _answer(self, ids: Iterable[int], found: Tensor, seg: Tensor) -> Answer:
        text = self.encoder.tokenizer.decode(list(ids))
        return Answer(list(ids), text, phrases_of(text), found, seg)

    @staticmethod
    def _means(states: Tensor, numbers: Sequence[int]) -> Tensor:
        """Average states of new tokens, the last of which has none."""
        return means(states, torch.tensor(numbers[: len(states)], dtype=torch.int64, device=states.device))

    def ends(self, ids: Sequence[int]) -> bool:
        """Tell whether an answer is over: by the end of a turn, or by that of all text."""
        tokenizer, ending = self.encoder.tokenizer, self.encoder.chat.ending
        if ids[-1] == tokenizer.eos_token_id:
            return True
        last = tokenizer.decode(ids[-len(ending) :])
        return last.replace("\r", "").replace("\n", "").endswith(ending)
