"""Train X-SAM's segmentor with a closed list of categories: the published stage 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg2any.data.words import Worded
from seg2any.segment.xsam.pictures import Frame, seg_picture
from seg2any.segment.xsam.postprocess import fitted, panoptic
from seg2any.system.errors import UserError
from seg2any.training.set_losses import Prediction, RandomPoints, Share, total_loss
from seg2any.training.tasks.xsam_data import Picture
from seg2any.training.tasks.xsam_networks import ClosedSegmentor, build_segmentor
from seg2any.training.tasks.xsam_task import XSamTask
from seg2any.training.tasks.xsam_writing import closed_target

CLOSED = "genseg"


class SegmentorTask(XSamTask):
    """The task that trains the segmentor alone, on all categories of a closed data set."""

    @property
    def mix(self) -> Mapping[str, int]:
        """Return one way: all categories."""
        return {CLOSED: 1}

    @property
    def categories(self) -> tuple[str, ...]:
        """The closed list. Raises UserError for a data set without one."""
        if not self.words.categories:
            raise UserError("data.train: task xsam_segmentor needs a closed list of categories; use ade20k or shapes")
        return self.words.categories

    def build(self, resumes: bool) -> nn.Module:
        """Build the segmentor with as many classes as the data set has."""
        self.model = build_segmentor(self.config, len(self.categories))
        self.model.config.id2label = dict(enumerate(self.categories))
        return ClosedSegmentor(self.model, self.strategy.dtype)

    def batch_loss(
        self, network: nn.Module, samples: Sequence[Picture], generators: Sequence[torch.Generator], share: Share
    ) -> Tensor:
        """Compute the loss of a batch of pictures, each at a drawn scale if xsam.jitter says so."""
        pairs = [
            closed_target(one.worded, self.categories, self.sam.image_size, self._scale(generator))
            for one, generator in zip(samples, generators, strict=True)
        ]
        found = network(torch.stack([picture for picture, _ in pairs]).to(self.strategy.device))
        predictions = [Prediction(*two) for two in zip(found.masks, found.classes, strict=True)]
        points = RandomPoints(generators, self.options.points)
        return total_loss([predictions[-1], *predictions[:-1]], [target for _, target in pairs], points, share)

    def found(self, worded: Worded) -> tuple[Tensor, list[str]]:
        """Find the segments of an image."""
        frame = Frame.of(worded.image.shape[:2], self.sam.image_size)
        answer = self.network(seg_picture(worded.image, frame)[None].to(self.strategy.device))
        classes, masks = answer.answer(self.sam.image_size)
        stuff = [self.categories.index(name) for name in self.words.stuff]
        labels, segments = panoptic(classes[0], fitted(masks[0], frame), stuff)
        names = {one.number: self.categories[one.category] for one in segments}
        return torch.stack([labels.cpu() == number for number in names] or [labels.cpu() < 0]), list(names.values())

    def _scale(self, generator: torch.Generator) -> float | None:
        if not self.options.jitter:
            return None
        low, high = self.options.jitter
        return low + (high - low) * float(torch.rand((), generator=generator))
