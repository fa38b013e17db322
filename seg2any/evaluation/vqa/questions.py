"""Questions to a vision-language model about each region.

The protocol is our own, after Soft-TIFA (GenEval 2, arXiv 2512.16853): one question for each thing that the caption
says, answered by a probability. Its numbers compare with no published table:

spatial    the whole image with the region's outline drawn: does it show the caption?
colour, shape, texture
           the region cut out, its surroundings dimmed: is the caption's word for it right? Asked only if the caption
           has such a word, which the model itself has picked out of the caption before.

A change of prompts or pictures needs a new PROTOCOL, because answers to other questions are other numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.cut_out import cut_out, outlined

PROTOCOL = "region-vqa-2"
ATTRIBUTES = ("colour", "shape", "texture")
KINDS = ("spatial", *ATTRIBUTES)
PROMPTS = {
    "extract": (
        "Below is the description of one thing in a picture. Which words in it say what colour the thing has, what "
        "shape it has, and what texture or material its surface has? Copy the words exactly. Use an empty string for "
        'what it does not say. Answer with JSON only: {{"colour": "...", "shape": "...", "texture": "..."}}\n\n'
        "Description: {caption}"
    ),
    "spatial": (
        "A region of this picture is outlined in magenta. Does the outlined region, as a whole, show this: {caption}? "
        "Answer with one word, yes or no."
    ),
    "colour": (
        "This is one thing cut out of a picture; what is dimmed does not belong to it. It is meant to show: {caption}. "
        "Look at its colour only. Is the colour {value}? Answer with one word, yes or no."
    ),
    "shape": (
        "This is one thing cut out of a picture; what is dimmed does not belong to it. It is meant to show: {caption}. "
        "Look at its shape only. Is the shape {value}? Answer with one word, yes or no."
    ),
    "texture": (
        "This is one thing cut out of a picture; what is dimmed does not belong to it. It is meant to show: {caption}. "
        "Look at its texture and material only. Is it {value}? Answer with one word, yes or no."
    ),
}
LONGEST_TEXT = 200  # tokens of an answer in words
PROMPTS_SHA256 = hashlib.sha256(json.dumps(PROMPTS, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Question:
    """One question about a caption alone, or about a region of a sample.

    key      of the sample, "" for a caption alone
    kind     one of KINDS, or "extract"
    images   uint8 [H, W, 3] each
    wants    "yes or no", or "attributes" for the JSON of words that a caption uses
    region   number of the image among those of its source, and of the region in it, by which answers are put together
    """

    key: str
    kind: str
    caption: str
    text: str
    images: tuple[np.ndarray, ...] = ()
    wants: Literal["yes or no", "attributes"] = "yes or no"
    region: tuple[int, int] = (0, 0)

    @cached_property
    def id(self) -> str:
        """sha256 of everything that the answer depends on, except the model."""
        digest = hashlib.sha256(json.dumps([PROTOCOL, self.wants, self.text]).encode())
        for image in self.images:
            digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def about_caption(caption: str) -> Question:
    """Ask which words of the caption name colour, shape and texture."""
    return Question("", "extract", caption, PROMPTS["extract"].format(caption=caption), wants="attributes")


def about_regions(
    key: str,
    image: np.ndarray,
    layout: Layout,
    words: Mapping[str, Mapping[str, str]],
    asked: Mapping[int, str] | None = None,
    number: int = 0,
) -> Iterator[Question]:
    """Ask about each region of an image uint8 [H, W, 3] that can be seen.

    words   caption -> attribute -> the caption's word for it, "" for none
    asked   region -> the caption to ask for, by default its own; other regions are left out. An attribute of another
            caption is asked for only where the region's own caption has another word for it.
    number  of the image
    """
    asked = dict(enumerate(layout.captions)) if asked is None else asked
    masks = resize_masks(layout.flattened().masks, image.shape[:2])
    for index, caption in asked.items():
        mask, own = masks[index], layout.captions[index]
        if not mask.any():
            continue
        text, place = PROMPTS["spatial"].format(caption=caption), (number, index)
        yield Question(key, "spatial", caption, text, (outlined(image, mask),), region=place)
        cut = None
        for attribute in ATTRIBUTES:
            value = words.get(caption, {}).get(attribute, "")
            if not value or (caption != own and words.get(own, {}).get(attribute, "") == value):
                continue
            cut = cut_out(image, mask) if cut is None else cut
            text = PROMPTS[attribute].format(caption=caption, value=value)
            yield Question(key, attribute, caption, text, (cut,), region=place)


def swapped_captions(layout: Layout) -> dict[int, str]:
    """Give each region the next region's caption that has other words.

    Regions without such a neighbour are left out. This is the floor: a model that says yes to everything says yes to
    these.
    """
    count = len(layout.captions)
    swapped = {}
    for index, own in enumerate(layout.captions):
        others = (layout.captions[(index + step) % count] for step in range(1, count))
        other = next((caption for caption in others if caption != own), None)
        if other is not None:
            swapped[index] = other
    return swapped
