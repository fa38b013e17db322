"""Samples whose annotation could not be read when tokens were counted: they are said, listed, and in no batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seg2any.data.bucket_map import UNUSABLE, BucketMap
from seg2any.data.catalog import DataSet
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.sample import SampleError


def check_unreadable(name: str, data: DataSet, rows: BucketMap, path: Path, on_error: str) -> None:
    """Warn of the samples that `rows`, the map in `path`, flags UNUSABLE, and list them beside it, if it is kept.

    Raises UserError if no other is left, and for `on_error` "fail"; see `check_left_out`.
    """
    unreadable = _Unreadable(data, np.flatnonzero(rows.flags & UNUSABLE), path)
    listed_in = path.with_name(f"{path.stem}-left_out.tsv") if path.parent.is_dir() else None
    check_left_out(name, unreadable, len(rows), on_error, listed_in)


class _Unreadable(Sequence[LeftOut]):
    """What is wrong with each of them is found out again when it is asked for."""

    def __init__(self, data: DataSet, indices: np.ndarray, path: Path):
        self.data, self.indices, self.path = data, indices, path

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> LeftOut:
        index = int(self.indices[number])
        try:
            self.data.annotation(index)
        except SampleError as error:
            return LeftOut(self.data.key(index), str(error))
        return LeftOut(self.data.key(index), f"was damaged when it was counted; remove {self.path} to count again")
