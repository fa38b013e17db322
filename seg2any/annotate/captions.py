"""Sources of captions: a model behind an endpoint or in this process, the phrases of a segmenter, or a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from seg2any.annotate.draft import Draft
from seg2any.annotate.prompts import LONGEST, PROMPTS, SIDE, VERSION
from seg2any.data.dataset import SampleError
from seg2any.layout.cut_out import cut_out, outlined
from seg2any.system.endpoint import Endpoint, request_body
from seg2any.system.limits import limits
from seg2any.system.patience import NoAnswer, Patience, patiently

WHAT = "captions"
SOURCE = "Qwen/Qwen3-VL-8B-Instruct"
THOUGHT = "</think>"  # ends what a reasoning model says to itself
LISTED = 8  # regions at most that stand in the caption of a photo that has none of its own


class Writer(Protocol):
    """A model that answers in words, one question at a time or several."""

    def reply(self, text: str, images: Sequence[np.ndarray], longest: int) -> tuple[str, int, int]:
        """Return the answer, and the numbers of tokens that were read and written.

        Raises NoAnswer if asking again may help.
        """


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, url: str, model: str):
        self.endpoint = Endpoint(url, model, WHAT)

    def reply(self, text: str, images: Sequence[np.ndarray], longest: int) -> tuple[str, int, int]:
        """Answer as `Writer` says."""
        reply = self.endpoint.post(request_body(self.endpoint.model, text, images, longest))
        try:
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            if choice.get("finish_reason") == "length":
                raise NoAnswer(f"the answer is longer than {longest} tokens")
            counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
            read, written = (count if type(count) is int else 0 for count in counts)
            return choice["message"]["content"] or "", read, written
        except (KeyError, IndexError, TypeError, AttributeError):
            raise NoAnswer(f"the reply has an unknown form: {json.dumps(reply)[:200]}") from None


@dataclass(frozen=True)
class Describe:
    """Ask a model for a caption of the photo and of each region.

    writer       the loaded model
    name         of the model
    concurrency  questions about one photo that are open at a time
    """

    writer: Writer
    name: str
    concurrency: int = 1
    patience: Patience = Patience()

    def __call__(self, draft: Draft) -> None:
        """Fill in all captions. Raises NoAnswer if one is not given in time; then none is kept."""
        questions = [lambda: ("image", (small(draft.image),))]
        questions += [lambda mask=mask: ("region", pictures_of(draft.image, mask)) for mask in draft.masks()]
        stopped = threading.Event()

        def answer(question: Callable[[], tuple[str, tuple[np.ndarray, ...]]]) -> tuple[str, int, int]:
            kind, images = question()
            return patiently(lambda: self._ask(kind, images), self.patience, stopped)

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            answers = list(pool.map(answer, questions))
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
        draft.caption, *captions = (text for text, *_ in answers)
        for region, caption in zip(draft.regions, captions, strict=True):
            region.caption = caption
        draft.tokens = sum(read for _, read, _ in answers), sum(written for *_, written in answers)
        draft.captions_by = f"{self.name}, {VERSION}"

    def _ask(self, kind: str, images: tuple[np.ndarray, ...]) -> tuple[str, int, int]:
        text, read, written = self.writer.reply(PROMPTS[kind], images, LONGEST[kind])
        return cleaned(text), read, written


def pictures_of(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Show a region bool [H, W]: outlined in the photo, and cut out."""
    return outlined(image, mask, SIDE), cut_out(image, mask)


def small(image: np.ndarray) -> np.ndarray:
    """Shrink a photo until its longest side has SIDE pixels."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return image
    return cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def cleaned(text: str) -> str:
    """Return an answer on one line, without a thought before it and quotes around it.

    Raises NoAnswer for an answer without words or with too many.
    """
    text = " ".join(text.rpartition(THOUGHT)[2].split()).strip("\"'“”„`* ")
    if not any(one.isalnum() for one in text):
        raise NoAnswer("the answer has no words")
    if len(text) > limits().characters:
        raise NoAnswer(f"the answer has {len(text)} characters")
    return text


def take_phrases(draft: Draft) -> None:
    """Keep the phrases that the method of the masks has given; without a caption of the photo, list them."""
    draft.captions_by = f"phrases of {draft.masks_by}"
    if draft.caption is None:
        draft.caption = listed([region.caption or "" for region in draft.regions])
        draft.captions_by += ", listed for the photo"


def listed(phrases: Sequence[str]) -> str:
    """Join different phrases to one caption, at most LISTED of them."""
    *most, last = list(dict.fromkeys(phrases))[:LISTED]
    return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True)
class Known:
    """Captions of one photo: `regions` maps ids of masks to theirs."""

    caption: str | None
    regions: dict[int, str]


def take_known(draft: Draft, known: Callable[[Draft], Known | None], name: str) -> None:
    """Take captions from a file. Raises SampleError for a photo or a region that it lacks."""
    found = known(draft)
    if found is None:
        raise SampleError(f"{name}: it has no captions of {draft.photo.key}; add them, or leave the photo out")
    lacking = [region.id for region in draft.regions if not (found.regions.get(region.id) or "").strip()]
    if lacking:
        raise SampleError(f"{name}: {draft.photo.key}: it has no caption of region {lacking[0]}; add it")
    for region in draft.regions:
        region.caption = found.regions[region.id]
    draft.caption, draft.captions_by = found.caption, Path(name).name
