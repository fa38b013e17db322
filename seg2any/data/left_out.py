"""Samples that cannot be used: known when a data set is opened, left out by index, never replaced by others.

The order of the remaining samples depends on the files alone, so it is the same in every process and every run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.processes import Process

ON_ERROR = ("skip", "fail")
LISTED = 10_000  # samples: of SACap-1M a million may be left out because their tars were not fetched


@dataclass(frozen=True)
class LeftOut:
    """A sample's key and one line that says what is wrong with which file."""

    key: str
    reason: str


class LeftOutWarning(UserWarning):
    """The data set holds less than the files promise."""


def check_left_out(
    name: str, left_out: Sequence[LeftOut], total: int, on_error: str, listed_in: Path | None = None
) -> None:
    """Warn of samples that are left out of `total`, and write key and reason of each into `listed_in`, a table with
    tabs, if its folder can be written. Raises UserError if nothing remains, and for `on_error` "fail"."""
    if on_error not in ON_ERROR:
        raise UserError(f"data set {name}: on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
    if total == 0:
        raise UserError(f"data set {name}: holds no sample; check its paths")
    is_listed = listed_in is not None and _is_listed(listed_in, left_out)
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
            "mend them, or leave them out with --data.on_error=skip"
        )
    if not Process.of(os.environ).is_first:
        return  # all processes of a run find the same, and the first says it
    warnings.warn(
        f"data set {name}: {len(left_out)} of {total} samples are left out; {first}", LeftOutWarning, stacklevel=3
    )


def _is_listed(path: Path, left_out: Sequence[LeftOut]) -> bool:
    """Write one line each, of at most LISTED; no file if there is none. False if the folder cannot be written."""
    lines = [f"{one.key}\t{' '.join(one.reason.split())}\n" for one in islice(left_out, LISTED)]
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
