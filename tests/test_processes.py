"""Division of a run's work among processes, and takeover of abandoned work."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process, wait_for_all, wait_for_others
from seg2any.system.workers import WorkerPool
from tests import forked

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("n_items", "count"), [(0, 1), (1, 3), (5, 3), (9, 3), (10, 4)])
def test_every_item_belongs_to_one_process(n_items: int, count: int):
    processes, items = [Process(index, count) for index in range(count)], list(range(n_items))
    assert sorted(item for process in processes for item in process.share(items)) == items
    in_order = [process.consecutive_share(n_items) for process in processes]
    assert [item for part in in_order for item in part] == items
    assert max(map(len, in_order)) - min(map(len, in_order)) <= 1
    assert ALONE.share(items) == list(ALONE.consecutive_share(n_items)) == items


def test_a_rank_without_a_world_size_is_ignored():
    assert Process.of({"RANK": "3"}) == ALONE
    assert Process.of({"RANK": "3", "ACCELERATE_USE_CPU": "True"}).is_on_cpu


def test_a_killed_child_keeps_no_lock_of_progress_bars(tmp_path: Path):
    def die(rank: int) -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm(disable=True)  # makes the lock that children would share
    assert forked.run(die, tmp_path / "log") == [-signal.SIGKILL]
    for lock in tqdm.get_lock().locks:
        assert lock.acquire(True, 5), "a dead process holds the lock"
        lock.release()


def test_a_process_waits_while_others_make_progress():
    left = iter([3, 2, 2, 1, 0])
    wait_for_others(lambda: next(left), lambda: pytest.fail("the others were at work"), patience=1.0)


def test_a_process_takes_over_when_others_make_no_progress():
    work = [1, 2, 3]
    wait_for_others(lambda: len(work), work.clear, patience=0.01)
    assert not work


def _add(shared: int, task: int) -> int:
    if task == 13:
        os._exit(1)
    if task < 0:
        raise UserError(f"task {task}: negative")
    return shared + task


@pytest.mark.parametrize("preload", [(), ("json",)])  # workers that are spawned, or forked by a server
def test_a_pool_works_through_more_tasks_than_it_queues(preload: tuple[str, ...]):
    with WorkerPool(2, shared=100, preload=preload) as pool:
        assert sorted(pool.results(_add, range(20, 40))) == [(task, 100 + task) for task in range(20, 40)]


@pytest.mark.parametrize(("task", "named"), [(-1, "task -1"), (13, "worker process was killed")])
def test_an_error_in_a_worker_ends_the_work(task: int, named: str):
    with pytest.raises(UserError, match=named), WorkerPool(1) as pool:
        list(pool.results(_add_to_none, [task, 1]))


def _add_to_none(shared: None, task: int) -> int:
    return _add(0, task)


def test_processes_of_a_launcher_wait_for_the_last_one_before_any_ends():
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    ended = [threading.Event() for _ in range(2)]

    def run(rank: int) -> None:
        wait_for_all(Process(rank, 2), launcher)
        ended[rank].set()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    threads[0].start()
    assert not ended[0].wait(1.5)
    threads[1].start()
    assert all(event.wait(20) for event in ended)
    wait_for_all(Process(0, 2), {})  # without a launcher's store
    wait_for_all(ALONE, launcher)
