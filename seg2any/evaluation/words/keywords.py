"""Segment phrases of `shapes` by words for colours alone: the floor that a segmenter of language has to beat.

Where a phrase names a colour, all pixels near it; else all pixels that differ from the image's border, the background.
"""

from __future__ import annotations

import numpy as np

from seg2any.data.shapes_draw import COLOURS
from seg2any.layout import Layout
from seg2any.segment.segmenter import Prompt

NEAR = 60.0  # greatest distance of a colour of 8 bits


class KeywordSegmenter:
    """Colours of words, without understanding: no shape, no pattern, no relation."""

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the pixels of the colours that each phrase or the question names. Raises UserError."""
        prompt.check("keywords", ("phrases",), ("question",))
        texts = prompt.phrases or (prompt.question,)
        masks = np.stack([self._mask(image, text) for text in texts])
        return Layout(masks, tuple(texts), overlap="share", source="keywords and colours")

    def _mask(self, image: np.ndarray, text: str) -> np.ndarray:
        named = [COLOURS[word] for word in text.lower().rstrip("?.").split() if word in COLOURS]
        if named:
            return np.any([_distance(image, colour) < NEAR for colour in named], axis=0)
        return _distance(image, np.median(image[0], axis=0)) > NEAR


def _distance(image: np.ndarray, colour: object) -> np.ndarray:
    return np.linalg.norm(image.astype(np.float32) - np.asarray(colour, np.float32), axis=-1)
