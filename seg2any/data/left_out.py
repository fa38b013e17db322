"""Samples that cannot be used: known when a data set is opened, left out by index, never replaced by others.

The order of the remaining samples depends on the files alone, so it is the same in every process and every run.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from seg2any.errors import UserError

ON_ERROR = ("skip", "fail")


@dataclass(frozen=True)
class LeftOut:
    """A sample's key and one line that says what is wrong with which file."""

    key: str
    reason: str


class LeftOutWarning(UserWarning):
    """The data set holds less than the files promise."""


def check_left_out(name: str, left_out: Sequence[LeftOut], total: int, on_error: str) -> None:
    """Warn of samples that are left out of `total`. Raises UserError if nothing remains, and for `on_error` "fail"."""
    if on_error not in ON_ERROR:
        raise UserError(f"data set {name}: on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
    if total == 0:
        raise UserError(f"data set {name}: holds no sample; check its paths")
    if not left_out:
        return
    first = f"the first is {left_out[0].key}: {left_out[0].reason}"
    if len(left_out) == total:
        raise UserError(f"data set {name}: none of {total} samples can be used; {first}")
    if on_error == "fail":
        raise UserError(
            f"data set {name}: {len(left_out)} of {total} samples cannot be used; {first}; "
            "mend them, or leave them out with --data.on_error=skip"
        )
    warnings.warn(
        f"data set {name}: {len(left_out)} of {total} samples are left out; {first}", LeftOutWarning, stacklevel=3
    )
