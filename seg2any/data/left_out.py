"""Leave out samples that cannot be used, and say which; they are never replaced.

They are found when a data set is opened or counted.

The order of the remaining samples depends on the files alone, so it is the same in every process and every run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from seg2any.data.bucket_map import UNUSABLE, BucketMap
from seg2any.data.dataset import DataSet, SampleError
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.processes import Process

ON_ERROR = ("skip", "fail")
LISTED = 10_000  # lines at most: a million images of SACap-1M are left out if their tars were not fetched


@dataclass(frozen=True)
class LeftOut:
    """A sample that cannot be used, and one line that says what is wrong with which file."""

    key: str
    reason: str


class LeftOutWarning(UserWarning):
    """A data set holds fewer samples than its files promise."""


def check_left_out(
    name: str, left_out: Sequence[LeftOut], total: int, on_error: str, listed_in: Path | None = None
) -> None:
    """Warn of samples that are left out of `total`, naming the first.

    listed_in  tab-separated table of key and reason of each, written if its folder can be written; None: no table

    Raises UserError if no sample remains, and for any left-out sample if `on_error` is "fail".
    """
    if on_error not in ON_ERROR:
        raise UserError(f"data set {name}: on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
    if total == 0:
        raise UserError(f"data set {name}: it holds no sample; check its paths")
    is_listed = listed_in is not None and _write_list(listed_in, left_out)
    if not left_out:
        return
    first = f"the first is {left_out[0].key}: {left_out[0].reason}"
    if is_listed and len(left_out) > 1:
        first += f" (all: {listed_in})"
    if len(left_out) == total:
        raise UserError(f"data set {name}: none of {total} samples can be used; {first}")
    if on_error == "fail":
        raise UserError(
            f"data set {name}: {len(left_out)} of {total} samples cannot be used; {first}; "
            "repair them, or leave them out with --data.on_error=skip"
        )
    if not Process.of(os.environ).is_first:
        return  # all processes of a run find the same, and only the first one warns
    warnings.warn(
        f"data set {name}: {len(left_out)} of {total} samples are left out; {first}", LeftOutWarning, stacklevel=3
    )


def _write_list(path: Path, left_out: Sequence[LeftOut]) -> bool:
    """Write at most LISTED lines; without any, remove the file.

    Returns False if the folder cannot be written.
    """
    lines = [f"{_cell(one.key)}\t{_cell(one.reason)}\n" for one in islice(left_out, LISTED)]
    if len(left_out) > LISTED:
        lines.append(f"...\tand {len(left_out) - LISTED} more\n")
    text = "".join(lines)
    try:
        if not text:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError:
        return False
    return True


def _cell(text: str) -> str:
    """Return a text as one cell of a table, which no spreadsheet takes for a formula or for several cells."""
    text = " ".join(text.split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def check_unreadable(name: str, data: DataSet, rows: BucketMap, path: Path, on_error: str) -> None:
    """Warn of the samples that the bucket map `rows` flags UNUSABLE.

    They are listed beside `path`, the file of the map, if its folder is kept.

    Raises UserError as `check_left_out` does.
    """
    unreadable = _Unreadable(data, np.flatnonzero(rows.flags & UNUSABLE), path)
    listed_in = path.with_name(f"{path.stem}-left_out.tsv") if path.parent.is_dir() else None
    check_left_out(name, unreadable, len(rows), on_error, listed_in)


class _Unreadable(Sequence[LeftOut]):
    """Samples flagged UNUSABLE; asking for one reads it again to find the reason."""

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
        return LeftOut(self.data.key(index), f"it was damaged when it was counted; remove {self.path} to count again")
