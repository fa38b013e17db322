"""A pool of worker processes that leave Ctrl-C to their parent and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from seg2any.system.errors import UserError
from seg2any.system.interrupts import STOPPING

Task, Result = TypeVar("Task"), TypeVar("Result")

TICK_SECONDS = 0.2
QUEUED_PER_WORKER = 4  # tasks: enough that no worker waits, few enough to look at all of them at every tick


class WorkerPool:
    """Worker processes that all hold one object, `shared`, until the end of a `with` block.

    count    worker processes
    shared   pickled once per worker; the first argument of the work
    prepare  called in every worker before its first task
    preload  modules that the work needs: imported once, by a server that forks the workers, where the system can fork

    Inside the block a worker that dies raises UserError.
    """

    def __init__(
        self, count: int, shared: object = None, prepare: Callable[[], None] | None = None, preload: Sequence[str] = ()
    ):
        self.count = count
        # Never forked from this process: libraries have threads here, whose locks a fork would copy.
        self.context = multiprocessing.get_context("spawn")
        if preload and "forkserver" in multiprocessing.get_all_start_methods():
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload([__name__, *preload])
        self._executor = ProcessPoolExecutor(count, self.context, _start_worker, (shared, prepare))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; run the same command again, with fewer "
                "workers: what is finished is kept"
            ) from None

    def results(
        self, work: Callable[[Any, Task], Result], tasks: Sequence[Task], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Task, Result]]:
        """Yield every task with `work(shared, task)`, in the order in which they end.

        tick  called at least every TICK_SECONDS while results are awaited

        An exception of `work` is raised here.
        """
        rest = iter(tasks)
        pending: dict[Future, Task] = {}
        with _ctrl_c_waits():  # this starts the workers
            self._submit(work, islice(rest, QUEUED_PER_WORKER * self.count), pending)
        while pending:
            done, _ = wait(pending, TICK_SECONDS, FIRST_COMPLETED)
            tick()
            self._submit(work, islice(rest, len(done)), pending)
            for future in done:
                yield pending.pop(future), future.result()

    def _submit(self, work: Callable, tasks: Iterator[Task], pending: dict[Future, Task]) -> None:
        for task in tasks:
            pending[self._executor.submit(_work, work, task)] = task


_shared: object  # of this worker process


def _start_worker(shared: object, prepare: Callable[[], None] | None) -> None:
    global _shared
    _shared = shared
    for number in STOPPING:  # the parent hears them, and lets tasks in work be finished; SIGTERM ends a worker
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _work(work: Callable[[Any, Task], Result], task: Task) -> Result:
    return work(_shared, task)


def _die_with_parent() -> None:
    """End this process with its parent: a killed parent cannot stop its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back during the block, so that processes started inside never see it.

    Blocking the signal is not enough: the kernel may deliver it to another thread, such as the progress bar's, and
    Python would interrupt this one all the same. Only the main thread can do so, and Windows cannot.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
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
