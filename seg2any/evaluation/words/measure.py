"""Ask a segmenter what a benchmark knows, and measure its answers. What it does not answer counts as a miss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from seg2any.evaluation.metrics.average_precision import Answers, average_precision
from seg2any.evaluation.metrics.cider import References, cider
from seg2any.evaluation.metrics.grounded import caption_of, found_phrases, grounded_iou, overlaps
from seg2any.evaluation.metrics.panoptic import PanopticQuality, Segments
from seg2any.evaluation.metrics.referring import FoundPhrase, cumulative_iou, generalized_iou
from seg2any.evaluation.metrics.result import GENERATED, Result, mean, pooled
from seg2any.evaluation.words.photos import AskedPhrase, Categories, Photo
from seg2any.evaluation.words.published import CUT
from seg2any.layout.contour import resize_masks
from seg2any.segment.segmenter import Description, Prompt, Segmenter
from seg2any.system.errors import UserError


class PanopticSegmenter(Protocol):
    """A segmenter that gives every pixel of an image to a segment of a closed list, or to none."""

    def panoptic(self, image: np.ndarray, categories: Categories) -> Segments:
        """Segment an image uint8 [H, W, 3]."""


class Describer(Protocol):
    """A method that describes an image, with a mask for each phrase of its description."""

    def describe(self, image: np.ndarray) -> Description:
        """Describe an image uint8 [H, W, 3]."""


def measure_phrases(photos: Iterable[Photo], segmenter: Segmenter, source: str = GENERATED) -> list[Result]:
    """Measure cIoU and gIoU of all phrases, and cIoU of each kind if there are several.

    Raises UserError without a phrase.
    """
    found: dict[str, list[FoundPhrase]] = defaultdict(list)
    for photo in photos:
        image = photo.read()
        for phrase in photo.phrases:
            answer = FoundPhrase(photo.key, phrase.mask, asked(segmenter, image, phrase), phrase.ignored)
            found[phrase.kind].append(answer)
    every = [one for of_kind in found.values() for one in of_kind]
    if not every:
        raise UserError("benchmark: no phrase is left to measure; check the annotations and --limit")
    results = [cumulative_iou("cIoU", every, source), generalized_iou("gIoU", every, source)]
    if len(found) > 1:
        results += [cumulative_iou(f"cIoU, {kind}", found[kind], source) for kind in sorted(found)]
    return results


def asked(segmenter: Segmenter, image: np.ndarray, phrase: AskedPhrase) -> np.ndarray:
    """Ask for a phrase or a question: bool [H, W] of the phrase's own mask; empty without an answer."""
    prompt = Prompt(question=phrase.text) if phrase.question else Prompt(phrases=(phrase.text,))
    masks = segmenter.segment(image, prompt).masks
    if not len(masks):
        return np.zeros_like(phrase.mask)
    return resize_masks(masks.any(0, keepdims=True), phrase.mask.shape)[0]


def measure_panoptic(
    photos: Iterable[Photo], segmenter: PanopticSegmenter, categories: Categories, source: str = GENERATED
) -> list[Result]:
    """Measure PQ, and the mIoU of the classes of pixels, over classes that occur in either."""
    quality, parts = PanopticQuality(), {}
    for photo in photos:
        found = segmenter.panoptic(photo.read(), categories)
        quality.add(photo.key, found, photo.segments)
        parts[photo.key] = _class_overlaps(found, photo.segments)
    return [quality.result("PQ", source), pooled("mIoU", parts, source=source)]


def measure_grounded(photos: Iterable[Photo], describer: Describer, source: str = GENERATED) -> list[Result]:
    """Measure descriptions: IoU of greedy pairs of masks, recall of phrases with their words, AP50 of masks, and CIDEr.

    Words are alike by the share of them that two phrases have in common. Published recall and AP compare the same
    masks, but words by a BERT model. CIDEr is left out unless two photos have captions of their own.
    """
    ious: dict[str, float] = {}
    recall, masks, captions, described = {}, {}, {}, {}
    for photo in photos:
        image = photo.read()
        description = describer.describe(image)
        layout = description.layout
        wanted = np.stack([mask for _, mask in photo.told])
        found = resize_masks(layout.masks, wanted.shape[1:]) if len(layout.masks) else wanted[:0]
        ious[photo.key] = grounded_iou(wanted, found)
        alike = np.array([[similarity(a, b) for b in layout.captions] for a, _ in photo.told])
        pairs = found_phrases(overlaps(wanted, found), alike) if len(found) else []
        recall[photo.key] = {"": (float(len(pairs)), float(len(wanted)))}
        masks[photo.key] = Answers(wanted, found, np.ones(len(found)))
        if photo.caption:
            captions[photo.key], described[photo.key] = photo.caption, description
    results = [mean("mask mIoU", ious, source=source), pooled("phrase recall", recall, source=source)]
    precision = average_precision(masks)
    results.append(Result("AP50", precision["AP50"], {}, {"n": len(masks), **precision}, source))
    return results + measured_captions(captions, described, source)


def measured_captions(
    captions: Mapping[str, str], described: Mapping[str, Description], source: str = GENERATED
) -> list[Result]:
    """Measure CIDEr of descriptions by the key of their photos; nothing for fewer than two captions.

    The first number sees all that is said but the words that introduce <SEG>, as a layout's caption has it. The second
    sees what the published evaluation keeps of the whole answer: it drops every sentence with <SEG>, and thereby a
    caption that does not end with a full stop of its own before them.
    """
    if len(captions) < 2:
        return []
    references = References({key: [caption] for key, caption in captions.items()})
    whole = {key: one.layout.caption or "" for key, one in described.items()}
    cut = {key: caption_of(one.answer) for key, one in described.items()}
    return [cider("CIDEr", whole, references, source), cider(CUT, cut, references, source)]


def similarity(a: str, b: str) -> float:
    """Compute the share of words that two phrases have in common, without articles: 0 to 1."""
    one, other = ({*text.lower().split()} - {"a", "an", "the"} for text in (a, b))
    return 2 * len(one & other) / max(len(one) + len(other), 1)


def _class_overlaps(found: Segments, wanted: Segments) -> dict[str, tuple[float, float]]:
    """Compare the class of every pixel that has a wanted one: intersection and union by class."""
    names = sorted({*wanted.classes.values(), *found.classes.values()})
    own, true = (_class_map(one, names) for one in (found, wanted))
    counted, parts = true >= 0, {}
    for number, name in enumerate(names):
        a, b = (own == number) & counted, true == number
        if either := np.count_nonzero(a | b):
            parts[name] = (float(np.count_nonzero(a & b)), float(either))
    return parts


def _class_map(segments: Segments, names: list[str]) -> np.ndarray:
    """Number the class of every pixel: int [H, W], -1 without one."""
    classes = np.full(segments.labels.shape, -1)
    for segment, name in segments.classes.items():
        classes[segments.labels == segment] = names.index(name)
    return classes
