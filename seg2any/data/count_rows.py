"""Rows of the bucket map, counted from the annotations of some samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from seg2any.data.annotation import Annotation
from seg2any.data.aspect import target_size
from seg2any.data.bucket_map import SCHEMA, UNUSABLE, BucketMap, Origin, map_path, origin_of
from seg2any.data.catalog import ClosedSet, DataSet
from seg2any.data.lengths import count_regions, text_lengths
from seg2any.data.sample import SampleError
from seg2any.training.config import Config


@dataclass(frozen=True, eq=False)
class RowCounter:
    """Counts samples of `data` as `origin` says. Can be sent to other processes.

    on_error  skip: samples whose annotation cannot be read are flagged UNUSABLE; fail: they raise SampleError
    """

    data: DataSet
    tokenizer: object
    origin: Origin
    on_error: str = "skip"

    def __call__(self, indices: Sequence[int]) -> pa.Table:
        """One row of SCHEMA for each sample, in the order of `indices`."""
        rows, captions = [], []
        for index in indices:
            try:
                annotation = self.data.annotation(index)
            except SampleError:
                if self.on_error == "fail":
                    raise
                rows.append(
                    {"key": self.data.key(index), "height": 0, "width": 0, "cond_seq_len": 0, "flags": UNUSABLE}
                )
                captions.append(())
                continue
            rows.append(self._regions(annotation))
            captions.append((annotation.caption, *annotation.captions))
        texts = [[text for text in sample if text is not None] for sample in captions]
        lengths = text_lengths(texts, self.tokenizer, self._class_lengths)
        for row, sample, numbers in zip(rows, captions, lengths, strict=True):
            row["txt_seq_len"] = sum(numbers)
            row["txt_len_trunc"] = self._cut(sample, numbers)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    @cached_property
    def _class_lengths(self) -> dict[str, int]:
        """Of the captions of a closed set, which occur again and again; empty for an open one."""
        names = list(dict.fromkeys(self.data.class_captions)) if isinstance(self.data, ClosedSet) else []
        return dict(zip(names, *text_lengths([names], self.tokenizer), strict=True))

    def _regions(self, annotation: Annotation) -> dict:
        origin = self.origin
        scale = origin.cond_scale_factor
        size = target_size(annotation.regions.size, origin.resolution, origin.aspect, origin.patch * scale)
        cond_size = size[0] // scale, size[1] // scale
        counts = count_regions(annotation.regions, size, cond_size, origin.patch, origin.aspect)
        return {
            "key": annotation.key,
            "height": size[0],
            "width": size[1],
            "cond_seq_len": counts.condition,
            "flags": counts.flags,
        }

    def _cut(self, captions: Sequence[str | None], lengths: Sequence[int]) -> int:
        """The sum of `lengths`, each at most its limit; a caption of None has no length."""
        limit, regional = self.origin.max_sequence_length, self.origin.regional_max_sequence_length
        has_caption = bool(captions) and captions[0] is not None
        limits = [limit] * has_caption + [regional] * (len(lengths) - has_caption)
        return int(np.minimum(lengths, limits).sum())


def open_map(data: DataSet, tokenizer: object, patch: int, config: Config) -> BucketMap:
    """The map of a run's training data; see `BucketMap.read` for what is raised and warned of.

    tokenizer  T5's
    patch      pixels per token side: VAE scale factor times 2
    """
    origin = origin_of(data, tokenizer, patch, config)
    # A published file has a row for every row of SACap-1M's table, also for those that are left out here.
    rows = getattr(data, "rows", None)
    return BucketMap.read(map_path(config), origin, RowCounter(data, tokenizer, origin), rows)
