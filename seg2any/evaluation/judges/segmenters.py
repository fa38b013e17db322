"""Any method of `segment` as a judge: opened by name, and classes out of its regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.layout.contour import nearest_exact
from seg2any.segment.segmenter import Prompt, Segmenter
from seg2any.system.errors import UserError


@dataclass(frozen=True, eq=False)
class NamedSegmenter:
    """A segmenter, and a text that identifies its method, model and settings."""

    name: str
    segmenter: Segmenter


# Words of a command line (method, then FLAG=VALUE), way of asking, device -> segmenter. Raises UserError.
OpenSegmenter = Callable[[Sequence[str], str, torch.device], NamedSegmenter]


def no_segmenter(words: Sequence[str], way: str, device: torch.device) -> NamedSegmenter:
    """Refuse to open a method, where the caller brings none."""
    raise UserError("--segmenter: the methods of `segment` are not known here; use `seg2any evaluate measure`")


class SegmenterLabels:
    """A segmenter that is asked for all classes of a data set at once, as a label judge.

    names  of the classes; of two with one name the first is seen

    A pixel gets the class of the surest region that has it; without one `classes`, which stands for none of them.
    """

    def __init__(self, segmenter: Segmenter, names: Sequence[str]):
        self.segmenter, self.names = segmenter, tuple(names)
        self.classes = len(self.names)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Classify every pixel: uint8 [H, W, 3] -> int64 [H, W]."""
        asked = tuple(dict.fromkeys(self.names))
        found = self.segmenter.segment(image, Prompt(categories=asked))
        scores = np.ones(len(found.masks)) if found.scores is None else found.scores
        labels = np.full(found.size, self.classes)
        for number in np.argsort(scores, kind="stable"):  # the surest last, on top of the others
            labels[found.masks[number]] = self.names.index(found.captions[number])
        rows, columns = (nearest_exact(*sides) for sides in zip(found.size, image.shape, strict=False))
        return labels[rows[:, None], columns]
