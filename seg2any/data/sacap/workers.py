"""Work spread over processes, one task each: progress, an end by Ctrl-C or an error, and no process left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes import Array, c_bool
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import TypeVar

from tqdm import tqdm

from seg2any.system.workers import WorkerPool

Task, Result = TypeVar("Task"), TypeVar("Result")
REFRESH_SECONDS, FILE_REFRESH_SECONDS = 0.2, 10


@dataclass(frozen=True, eq=False)
class Progress:
    """Shared by all processes. Every task has counters of its own, so there is no lock that a dying process holds."""

    images: Array
    bytes: Array
    stop: c_bool


@dataclass(frozen=True, eq=False)
class Meter:
    """What a task sees of the progress."""

    progress: Progress
    task: int

    def add(self, images: int, size: int) -> None:
        """Count images that are done, and bytes."""
        self.progress.images[self.task] += images
        self.progress.bytes[self.task] += size

    @property
    def stopped(self) -> bool:
        """Whether to return at once; the result will not be looked at."""
        return self.progress.stop.value


def progress_bar(title: str, images: int, done: int = 0) -> tqdm:
    """Of which `done` images were done before. In a file, where every state stays, it is renewed seldom."""
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
