"""Let X-SAM give every pixel of an image to a segment of a closed list."""

from __future__ import annotations

import numpy as np
import torch

from seg2any.evaluation.metrics.panoptic import Segments
from seg2any.evaluation.words.photos import Categories
from seg2any.segment.xsam import asking, postprocess
from seg2any.segment.xsam.asking import Wording
from seg2any.segment.xsam.pictures import Frame
from seg2any.segment.xsam.segmenter import XSamSegmenter
from seg2any.segment.xsam.speaker import Question

THRESHOLD = 0.0  # of the score of a query that may have pixels, as in the published evaluation


class XSamPanoptic:
    """All categories asked for in one question; see `measure.PanopticSegmenter`."""

    def __init__(self, segmenter: XSamSegmenter):
        self.segmenter = segmenter

    @torch.inference_mode()
    def panoptic(self, image: np.ndarray, categories: Categories) -> Segments:
        """Segment an image uint8 [H, W, 3]; nothing, if the model's answer shows nothing."""
        speaker = self.segmenter.speaker
        frame = Frame.of(image.shape[:2], speaker.model.segmentor.side)
        seen = self.segmenter.see(image, frame)
        question = Question(asking.ask_categories(categories.names, Wording.usual()))
        answers = speaker.answer(seen, [question], self.segmenter.choices.most)
        (found,) = speaker.segment(seen, [0], answers)
        if found is None:
            return Segments(np.zeros(image.shape[:2], np.int64), {})
        stuff = [number for number, name in enumerate(categories.names) if name in categories.stuff]
        logits = postprocess.fitted(found.masks, frame)
        labels, segments = postprocess.panoptic(found.classes, logits, stuff, THRESHOLD)
        return Segments(labels.cpu().numpy(), {one.number: categories.names[one.category] for one in segments})
