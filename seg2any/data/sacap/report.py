"""What is missing or broken, for people and for programs."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.system.files import atomic_write

MOST_SHOWN = 20


@dataclass(frozen=True, order=True)
class Problem:
    """`image` of `group` is not whole: `file` (its jpg or its json) is not there (`missing`) or is not right."""

    group: str
    image: str
    file: str
    reason: str
    missing: bool


def summary(problems: Sequence[Problem]) -> Iterable[str]:
    """Lines: alike problems of a group together, the first MOST_SHOWN."""
    alike = defaultdict(list)
    for problem in sorted(problems):
        alike[problem.group, problem.reason].append(problem)
    for (group, reason), found in list(alike.items())[:MOST_SHOWN]:
        where = f"{group}/{found[0].file}".lstrip("/") + (
            f" and {len(found) - 1:,} more files" if len(found) > 1 else ""
        )
        yield f"  {where}: {reason}"
    if len(alike) > MOST_SHOWN:
        yield f"  ... and {len(alike) - MOST_SHOWN:,} more lines; --report FILE writes all of them"


def write_report(path: Path, problems: Sequence[Problem]) -> None:
    """A table with tabs, one line per problem."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["image_group", "imagename", "file", "problem", "reason"])
        for problem in sorted(problems):
            kind = "missing" if problem.missing else "broken"
            table.writerow([problem.group, problem.image, problem.file, kind, problem.reason])


def in_bytes(count: float) -> str:
    """1040000 -> "1.04 MB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
