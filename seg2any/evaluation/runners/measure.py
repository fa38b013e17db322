"""A metric with its judge loaded, and what its loader may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from seg2any.evaluation.judges.kept import KeptMasks, KeptSegmenter
from seg2any.evaluation.judges.segmenters import NamedSegmenter, OpenSegmenter
from seg2any.evaluation.labels.label_maps import ClassTable
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import Result
from seg2any.evaluation.runners.items import Benchmark
from seg2any.system.errors import UserError

FOUND = "found_masks.jsonl"  # in the folder of the images


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric with its judge loaded.

    results  measures the generated images, with their ceiling and floors
    uses     flags of its judges
    seen     item -> where the judge sees the item's regions, bool [N, H, W]; None if the judge does not see regions
    """

    results: Callable[[Benchmark], list[Result]]
    uses: tuple[str, ...] = ()
    seen: Callable[[Item, Benchmark], np.ndarray] | None = None


class Loading:
    """The benchmark, judges and device that the loaders of metrics share.

    judges  flag of a judge -> its value on the command line
    """

    def __init__(
        self, benchmark: Benchmark, judges: Mapping[str, str], device: torch.device, open_segmenter: OpenSegmenter
    ):
        self.benchmark, self.judges, self.device = benchmark, judges, device
        self._open, self._opened = open_segmenter, {}

    def classes(self, metric: str) -> ClassTable:
        """Return the data set's classes. Raises UserError if it has none."""
        if self.benchmark.table is None:
            raise UserError(f"{metric}: the data set has no classes; measure `regions` or `language` instead")
        return self.benchmark.table

    @cached_property
    def words(self) -> KeptSegmenter:
        """Open the method of --segmenter for phrases; what it finds is kept, and metrics share it. Raises UserError."""
        opened = self.segmenter("phrases")
        return KeptSegmenter(opened.segmenter, self.kept(opened.name))

    def kept(self, judge: str) -> KeptMasks:
        """Open the file of masks that a judge has found in the images. Raises UserError if it holds anything else."""
        return KeptMasks(self.benchmark.generated.folder / FOUND, judge)

    def segmenter(self, way: str) -> NamedSegmenter:
        """Open the method of --segmenter, once for each way of asking it. Raises UserError."""
        if way not in self._opened:
            self._opened[way] = self._open(self.judges["segmenter"].split(), way, self.device)
        return self._opened[way]


Loader = Callable[[Loading], Measure]
