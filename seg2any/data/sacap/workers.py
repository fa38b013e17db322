"""Work spread over processes, one task each: progress, an end by Ctrl-C or an error, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import Array, c_bool
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from seg2any.system.errors import UserError

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
    """Yield every task with `work(task, meter)`, as they end. `bar` counts images and shows bytes per second.

    An exception of `work` stops all tasks and is raised here. Raises UserError if a process dies.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other libraries' threads
    progress = Progress(
        context.RawArray("q", len(tasks)), context.RawArray("q", len(tasks)), context.RawValue(c_bool, False)
    )
    executor = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_start, initargs=(progress,))
    try:
        with _ctrl_c_waits():
            pending = {executor.submit(_work, work, task, i): task for i, task in enumerate(tasks)}
        while pending:
            done, _ = wait(pending, REFRESH_SECONDS, FIRST_EXCEPTION)
            _show(bar, progress)
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        text = "a worker process died, perhaps for want of memory; start again to go on, with fewer --workers"
        raise UserError(text) from None
    finally:
        progress.stop.value = True
        executor.shutdown(cancel_futures=True)


_progress: Progress  # of the process that a worker belongs to


def _start(progress: Progress) -> None:
    global _progress
    _progress = progress
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(work: Callable[[Task, Meter], Result], task: Task, number: int) -> Result:
    return work(task, Meter(_progress, number))


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Processes started in here never see Ctrl-C: they are stopped in good order. This process sees it afterwards.

    Blocking it is not enough for that: the kernel may hand it to another thread, such as the progress bar's, and Python
    would interrupt this one all the same.
    """
    seen: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if seen:
        raise KeyboardInterrupt


def _show(bar: tqdm, progress: Progress) -> None:
    done = bar.initial + sum(progress.images)
    seconds = max(bar.format_dict["elapsed"], 1e-3)
    bar.set_postfix_str(f"{sum(progress.bytes) / 1e6 / seconds:.1f} MB/s", refresh=False)
    bar.update(done - bar.n)
