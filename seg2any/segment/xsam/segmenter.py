"""X-SAM as a segmenter: regions from phrases, categories, visual prompts and questions, and with a description.

phrases              a mask each; each is asked for alone, so they may overlap
categories           asked for at once; every pixel has one of them or none
points, boxes, masks the region that each shows
describe             a caption, with a mask for each phrase that it marks
question             one mask, and what the model says to it as the caption
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg2any.layout import Layout
from seg2any.segment.segmenter import Description, Prompt
from seg2any.segment.xsam import asking, postprocess, prompts
from seg2any.segment.xsam.asking import Turn, Wording
from seg2any.segment.xsam.generation import MOST
from seg2any.segment.xsam.model import Pictures, Seen
from seg2any.segment.xsam.pictures import Frame, padded_to_square, seg_picture, visual_picture
from seg2any.segment.xsam.speaker import Answer, Question, Segmented, Speaker
from seg2any.segment.xsam.wordings import SPECIAL_TOKENS

METHOD = "xsam"
TAKEN = (("phrases",), ("categories",), ("points",), ("boxes",), ("masks",), ("describe",), ("question",))
NO_PHRASE = "the answer marks no phrase that it shows"
NO_MASK = "the answers show none that passes the threshold"
# The end of an answer that shows its regions.
ENDING = re.compile(r"(Sure, )?((and )?(it|the segmentation (mask|result)) is|and)?\s*<SEG>\s*\.?", re.I)


@dataclass(frozen=True)
class Choices:
    """Settings of answers and masks.

    threshold  of a mask's probability, and of the score of a category's region
    batch      questions answered at once
    most       new tokens of an answer
    """

    threshold: float = 0.5
    batch: int = 8
    most: int = MOST


class XSamSegmenter:
    """A language model that segments. Masks have the size of the image; `scores` are the model's, 0 to 1.

    A region that the answer does not show has an empty mask and the score 0.
    """

    def __init__(self, speaker: Speaker, name: str, choices: Choices | None = None):
        self.speaker, self.name, self.choices = speaker, name, choices or Choices()

    @torch.inference_mode()
    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the regions of a prompt in an image uint8 [H, W, 3].

        Raises UserError for prompts of other kinds, and for points that lie outside of a region.
        """
        prompt.check(METHOD, *TAKEN)
        if prompt.describe:
            return self.describe(image).layout
        frame = Frame.of(image.shape[:2], self.speaker.model.segmentor.side)
        seen = self.see(image, frame)
        if prompt.phrases is not None and prompt.given == ("phrases",):
            turns = [asking.ask_phrases([text], Wording.usual()) for text in prompt.phrases]
            return self._layout(*self._alone(seen, frame, map(Question, turns)), prompt.phrases)
        if prompt.categories is not None:
            return self._categories(seen, frame, prompt.categories)
        if prompt.question is not None:
            return self._question(seen, frame, prompt.question)
        return self._shown(seen, frame, prompt)

    @torch.inference_mode()
    def describe(self, image: np.ndarray) -> Description:
        """Describe an image uint8 [H, W, 3]; a phrase whose marks are broken or empty has no region."""
        frame = Frame.of(image.shape[:2], self.speaker.model.segmentor.side)
        answers, found = self._ask(self.see(image, frame), [Question(asking.ask_description(Wording.usual()))])
        phrases = answers[0].phrases
        if found[0] is None or len(phrases) != len(answers[0].found):
            phrases = []
        masks, scores = self._best(found[0], frame, 0) if phrases else self._best(None, frame, 0)
        kept = [number for number, text in enumerate(phrases) if text]
        named = [phrases[number] for number in kept]
        return Description(self._layout(masks[kept], scores[kept], named, self.said(answers[0])), answers[0].text)

    def see(self, image: np.ndarray, frame: Frame) -> Seen:
        """Encode an image uint8 [H, W, 3] as evaluation does: SigLIP sees it in a grey square."""
        model = self.speaker.model
        visual = visual_picture(padded_to_square(image), model.config.siglip_config.image_size)
        pictures = Pictures(seg_picture(image, frame)[None], visual[None])
        device = model.bg_embeds.weight.device
        return model.see(Pictures(pictures.seg.to(device), pictures.visual.to(device)))

    def _ask(self, seen: Seen, questions: Sequence[Question]) -> tuple[list[Answer], list[Segmented | None]]:
        answers = self.speaker.answer(seen, questions, self.choices.most)
        return answers, self.speaker.segment(seen, [0] * len(answers), answers)

    def _alone(self, seen: Seen, frame: Frame, questions: Iterable[Question]) -> tuple[np.ndarray, np.ndarray]:
        """Find one region for each question: masks bool [N, H, W] and scores [N]."""
        masks, scores = [], []
        for some in self._batches(list(questions)):
            for found in self._ask(seen, some)[1]:
                mask, score = self._best(found, frame)
                masks.append(mask[0])
                scores.append(score[0])
        return np.array(masks).reshape(-1, *frame.size), np.array(scores, np.float32)

    def _batches(self, every: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(every), self.choices.batch):
            yield every[start : start + self.choices.batch]

    def _best(self, found: Segmented | None, frame: Frame, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Take the best query of each class: masks bool [N, H, W] and scores [N], empty without an answer."""
        if found is None:
            return np.zeros((count, *frame.size), bool), np.zeros(count, np.float32)
        logits = postprocess.fitted(found.masks, frame)
        best = postprocess.best_of_class(found.classes, logits, self.choices.threshold)
        return best.masks.cpu().numpy(), best.scores.cpu().numpy()

    def _categories(self, seen: Seen, frame: Frame, names: Sequence[str]) -> Layout:
        """Find at most one region for each name; a pixel is in one of them at most."""
        question = Question(asking.ask_categories(names, Wording.usual()))
        found = self._ask(seen, [question])[1][0]
        masks, scores = np.zeros((len(names), *frame.size), bool), np.zeros(len(names), np.float32)
        if found is not None:
            logits = postprocess.fitted(found.masks, frame)
            owner, segments = postprocess.panoptic(
                found.classes, logits, range(len(names)), threshold=self.choices.threshold
            )
            owner = owner.cpu().numpy()
            for one in segments:
                masks[one.category] = owner == one.number
                scores[one.category] = max(scores[one.category], one.score)
        return self._layout(masks, scores, names)

    def _shown(self, seen: Seen, frame: Frame, prompt: Prompt) -> Layout:
        """Find the region that each visual prompt shows."""
        shown = prompts.drawn(prompt, frame).to(seen.grid.device)
        turns = asking.ask_regions(1, Wording.usual())
        masks, scores = np.zeros((len(shown), *frame.size), bool), np.zeros(len(shown), np.float32)
        for some in self._batches(range(len(shown))):
            answered = self._ask(seen, [Question(turns, regions=shown[number][None]) for number in some])[1]
            for number, found in zip(some, answered, strict=True):
                if found is not None:
                    masks[number], scores[number] = self._nearest(found, frame, shown[number])
        return self._layout(masks, scores, prompt.captions())

    def _nearest(self, found: Segmented, frame: Frame, shown: Tensor) -> tuple[np.ndarray, float]:
        logits = postprocess.fitted(found.masks, frame)
        there = postprocess.fitted_masks(shown[None], frame)[0]
        one = postprocess.nearest_to(there, found.classes, logits, self.choices.threshold)
        return one.masks[0].cpu().numpy(), float(one.scores[0])

    def _question(self, seen: Seen, frame: Frame, text: str) -> Layout:
        turns: list[Turn] = asking.ask_questions([text], Wording.usual(), whole=text.strip()[-1] in ".?!")
        answers, found = self._ask(seen, [Question(turns)])
        return self._layout(*self._best(found[0], frame), [text.strip()], self.said(answers[0]))

    def said(self, answer: Answer) -> str | None:
        """Return the words of an answer, without marks and its ending; None if it has none."""
        text = answer.text.replace(self.speaker.encoder.chat.ending, " ")
        text = ENDING.sub(" ", text)
        for mark in SPECIAL_TOKENS:
            text = text.replace(mark, " ")
        text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))
        return text if re.search(r"\w", text) else None

    def _layout(
        self, masks: np.ndarray, scores: np.ndarray, captions: Sequence[str], caption: str | None = None
    ) -> Layout:
        return Layout(
            masks,
            tuple(captions),
            caption=caption,
            scores=np.clip(scores, 0, 1),
            source=f"X-SAM ({self.name})",
            overlap="share",
            notes=() if masks.any() else (NO_MASK if captions else NO_PHRASE,),
        )
