"""Show the tools' progress while they work, and report problems at the end."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import Array, c_bool
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from seg2any.system.files import atomic_write
from seg2any.system.workers import WorkerPool

Task, Result = TypeVar("Task"), TypeVar("Result")
REFRESH_SECONDS, FILE_REFRESH_SECONDS = 0.2, 10
MOST_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Progress:
    """Counters in memory that all processes share.

    Every task has counters of its own, so they need no lock, which a dying process could keep.
    """

    images: Array
    bytes: Array
    stop: c_bool


@dataclass(frozen=True, eq=False)
class Meter:
    """The progress counters of one task."""

    progress: Progress
    task: int

    def add(self, images: int, size: int) -> None:
        """Count finished images, and bytes."""
        self.progress.images[self.task] += images
        self.progress.bytes[self.task] += size

    @property
    def stopped(self) -> bool:
        """Tell whether the task has to return at once; its result is not used."""
        return self.progress.stop.value


def progress_bar(title: str, images: int, done: int = 0) -> tqdm:
    """Return a progress bar for `images` images, `done` of which were finished before.

    It is renewed seldom where stderr is a file.
    """
    interval = REFRESH_SECONDS if sys.stderr.isatty() else FILE_REFRESH_SECONDS
    return tqdm(desc=title, total=images, initial=done, unit="image", smoothing=0.05, mininterval=interval)


def run_tasks(
    work: Callable[[Task, Meter], Result], tasks: Sequence[Task], workers: int, bar: tqdm
) -> Iterator[tuple[Task, Result]]:
    """Yield every task with `work(task, meter)`, in the order in which they end.

    `bar` counts images and shows bytes per second. An exception of `work` stops all tasks and is raised here; a worker
    that dies raises UserError.
    """
    if not tasks:
        return
    progress = Progress(RawArray("q", len(tasks)), RawArray("q", len(tasks)), RawValue(c_bool, False))
    with WorkerPool(min(workers, len(tasks)), (work, progress)) as pool:
        try:
            for (_, task), result in pool.results(_work, list(enumerate(tasks)), lambda: _show(bar, progress)):
                yield task, result
        finally:
            progress.stop.value = True


def _work(shared: tuple[Callable[[Task, Meter], Result], Progress], numbered: tuple[int, Task]) -> Result:
    work, progress = shared
    number, task = numbered
    return work(task, Meter(progress, number))


def _show(bar: tqdm, progress: Progress) -> None:
    done = bar.initial + sum(progress.images)
    seconds = max(bar.format_dict["elapsed"], 1e-3)
    bar.set_postfix_str(f"{sum(progress.bytes) / 1e6 / seconds:.1f} MB/s", refresh=False)
    bar.update(done - bar.n)


@dataclass(frozen=True, order=True)
class Problem:
    """A reason why an image of a group is not whole: its `file` is `missing` or broken."""

    group: str
    image: str
    file: str
    reason: str
    missing: bool


def summary(problems: Sequence[Problem]) -> Iterable[str]:
    """Yield a line for equal problems of one group, and at most MOST_SHOWN lines."""
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
    """Write a tab-separated table with one line per problem."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["image_group", "imagename", "file", "problem", "reason"])
        for problem in sorted(problems):
            kind = "missing" if problem.missing else "broken"
            table.writerow([problem.group, problem.image, problem.file, kind, problem.reason])


def in_bytes(count: float) -> str:
    """Format a number of bytes: 1040000 -> "1.04 MB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
