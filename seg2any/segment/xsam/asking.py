"""Put what a task asks for into the turns of a conversation, in the published form.

Every question and answer has several wordings, of which `Wording` chooses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seg2any.segment.xsam import wordings
from seg2any.segment.xsam.wordings import PICTURE, REGION, phrase

EXPLAINED = 0.5  # share of the questions with an explanation whose answer gives it


@dataclass(frozen=True)
class Turn:
    """A question and its answer, which is empty where the model shall answer."""

    question: str
    answer: str = ""


@dataclass(frozen=True)
class Wording:
    """The chooser of wordings: `of` takes one of several, and `share` draws a number from 0 to 1."""

    of: Callable[[Sequence[str]], str]
    share: Callable[[], float]

    @classmethod
    def usual(cls) -> Wording:
        """Choose the second wording always, which reads well with any phrase; answers explain nothing."""
        return cls(lambda several: several[1], lambda: 1.0)

    @classmethod
    def drawn(cls, generator: random.Random) -> Wording:
        """Draw wordings."""
        return cls(generator.choice, generator.random)


def ask_categories(
    names: Sequence[str], wording: Wording, answered: bool = False, caption: str | None = None
) -> list[Turn]:
    """Ask for the regions of categories, with a description first where a caption is given."""
    phrases = ", ".join(phrase(class_name(name)) for name in names)
    if caption is None:
        questions, answers = wordings.CATEGORIES, wordings.RESULT_ANSWERS
    else:
        questions, answers = wordings.DESCRIBED_CATEGORIES, wordings.DESCRIBED_ANSWERS
    return [_turn(questions, phrases, answers, caption, wording, answered)]


def ask_phrases(texts: Sequence[str], wording: Wording, answered: bool = False) -> list[Turn]:
    """Ask for the region of each phrase, one turn for each."""
    phrases = [phrase(text.strip().lower()) for text in texts]
    return _first_with_picture(
        [_turn(wordings.PHRASES, one, wordings.MASK_ANSWERS, None, wording, answered) for one in phrases]
    )


def ask_questions(
    texts: Sequence[str],
    wording: Wording,
    answered: bool = False,
    whole: bool = True,
    explanations: Sequence[str | None] | None = None,
) -> list[Turn]:
    """Ask questions whose answers are regions, one turn for each.

    whole         the questions are sentences, no mere phrases
    explanations  what half of the answers say before the region, for each question
    """
    turns = []
    for text, explanation in zip(texts, explanations or [None] * len(texts), strict=True):
        questions = wordings.SENTENCES if whole else wordings.SHORT_SENTENCES
        one = _turn(questions, phrase(text.strip()), wordings.MASK_ANSWERS, None, wording, answered)
        if explanation is not None and wording.share() < EXPLAINED:
            questions, answers = wordings.EXPLAINED_SENTENCES, wordings.EXPLAINED_ANSWERS
            one = _turn(questions, phrase(text.strip()), answers, explanation, wording, answered)
        turns.append(one)
    return _first_with_picture(turns)


def ask_description(wording: Wording, caption: str | None = None, spans: Sequence[tuple[int, int]] = ()) -> list[Turn]:
    """Ask for a description with the regions of its phrases.

    caption  the answer; None where the model shall describe
    spans    first character and end of each phrase in it
    """
    marked = None if caption is None else mark_phrases(caption, spans)
    return [_turn(wordings.DESCRIPTIONS, "", wordings.DESCRIPTION_ANSWERS, marked, wording, caption is not None)]


def ask_regions(count: int, wording: Wording, answered: bool = False) -> list[Turn]:
    """Ask for the regions that visual prompts show."""
    phrases = ", ".join([phrase(REGION)] * count)
    return [_turn(wordings.REGIONS, phrases, wordings.RESULT_ANSWERS, None, wording, answered)]


def chat(messages: Sequence[tuple[str, str]], answered: bool = True) -> list[Turn]:
    """Make turns of messages (speaker, text), speakers being "human" and "gpt"; what precedes the human is left out."""
    turns, question = [], ""
    for speaker, text in messages:
        if speaker == "human":
            question += picture_first(text)
        elif question:
            turns.append(Turn(question, text if answered else ""))
            question = ""
    return [*turns, Turn(question)] if question else turns


def picture_first(text: str) -> str:
    """Move the picture's marker to the front of a message."""
    if PICTURE not in text:
        return text.strip()
    return f"{PICTURE}\n{text.replace(PICTURE, '').strip()}".strip()


def class_name(name: str) -> str:
    """Clean the name of a class of COCO or ADE20K."""
    for ending in ("-merged", "-other", "-stuff"):
        name = name.replace(ending, "")
    return name.replace("-", " ").lower()


def mark_phrases(caption: str, spans: Sequence[tuple[int, int]]) -> str:
    """Mark the phrases of a caption, each with one more space behind it, as published."""
    for start, end in sorted(spans, reverse=True):
        caption = f"{caption[:start]}{phrase(caption[start:end])} {caption[end:]}"
    return caption.strip()


def phrases_of(text: str) -> list[str]:
    """Return the marked phrases of an answer; the k-th mark begins what the k-th ends, however they are nested."""
    starts = [found.end() for found in re.finditer(re.escape(wordings.START), text)]
    ends = [found.start() for found in re.finditer(re.escape(wordings.END), text)]
    marks = re.compile("|".join(map(re.escape, wordings.SPECIAL_TOKENS)))
    return [marks.sub("", text[start:end]).strip() for start, end in zip(starts, ends, strict=False) if end >= start]


def _turn(
    questions: Sequence[str], asked: str, answers: Sequence[str], told: str | None, wording: Wording, answered: bool
) -> Turn:
    question = f"{PICTURE}\n{wording.of(questions).format(asked)}"
    return Turn(question, wording.of(answers).format(told) if answered else "")


def _first_with_picture(turns: Sequence[Turn]) -> list[Turn]:
    """Leave the picture in the first turn only."""
    return [turns[0], *(Turn(turn.question.removeprefix(f"{PICTURE}\n"), turn.answer) for turn in turns[1:])]
