"""Region questions in the words of CreatiLayout's LayoutSAM-Eval (arXiv 2412.03859), as a mode.

Four questions about the box of every region, cut out: is the caption's subject there, and are its colour, texture and
shape those of the caption? As published, an attribute that the caption does not mention is right, an answer counts as
yes or no, and attributes of a subject that is not there are wrong. One caption stands for the published pair of a short
and a detailed one, and the judge is another, so the numbers compare with no published table either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np

from seg2any.evaluation.vqa.questions import Question
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.cut_out import box_with_margin

NAME = "layoutsam-eval"
WORDS = {"colour": "color", "texture": "texture", "shape": "shape"}
STRICTLY = 'Strictly answer with "Yes" or "No", without any irrelevant words.'
PROMPTS = {"spatial": f'Is the subject "{{caption}}" present in the image? {STRICTLY}'} | {
    kind: (
        f'Is the subject in "{{caption}}" in the image consistent with the {word} described in the detailed '
        f'description: "{{caption}}"? {STRICTLY} If the {word} is not mentioned in the detailed description, the '
        'answer is "Yes".'
    )
    for kind, word in WORDS.items()
}
PROMPTS_SHA256 = hashlib.sha256(json.dumps(PROMPTS, sort_keys=True).encode()).hexdigest()


def about_boxes(
    key: str, image: np.ndarray, layout: Layout, asked: Mapping[int, str] | None = None, number: int = 0
) -> Iterator[Question]:
    """Ask four questions about the box of each region of an image uint8 [H, W, 3] that can be seen.

    asked   region -> the caption to ask for, by default its own; other regions are left out
    number  of the image
    """
    asked = dict(enumerate(layout.captions)) if asked is None else asked
    masks = resize_masks(layout.visible, image.shape[:2])
    for index, caption in asked.items():
        if not masks[index].any():
            continue
        cut = image[box_with_margin(masks[index], 0)]
        for kind, prompt in PROMPTS.items():
            text = prompt.format(caption=caption)
            yield Question(key, kind, caption, text, (cut,), region=(number, index))
