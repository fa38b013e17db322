"""Signals of batch systems end a training with a checkpoint, at the same step on every process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from seg2any.training.interrupt import SAME_EVENT_SECONDS, Interrupt
from tests import forked, tiny_run

ALONE = SimpleNamespace(num_processes=1)
LAUNCHED = SimpleNamespace(num_processes=4)
STOPPED_AT = 2  # the step in which the signal arrives


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """Undo what the tests' own process inherits: nohup ignores SIGHUP, a shell's background jobs ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def status_of(function, tmp_path: Path) -> int:
    """Run a function of no arguments in a child process; return the exit status."""
    (status,) = forked.run(lambda rank: function(), tmp_path / "log.txt")
    return status


def train(arguments, rank: int, numbers=(), victim: int = 0, saving: signal.Signals | None = None) -> None:
    """Train without end; in step STOPPED_AT the victim gets signals, and one more, `saving`, while it writes.

    The process exits with the status that train.py would have.
    """
    trainer = tiny_run.trainer(arguments)
    step, save = trainer.step, trainer.checkpoints.save

    def signalled_step(log):
        if trainer.progress.step == STOPPED_AT - 1 and rank == victim:
            for number in numbers:
                os.kill(os.getpid(), number)
        step(log)

    def signalled_save(*given):
        if saving:
            os.kill(os.getpid(), saving)
        return save(*given)

    trainer.step, trainer.checkpoints.save = signalled_step, signalled_save
    os._exit(trainer.fit())


def endless(arguments) -> list[str]:
    return [*arguments, "--trainer.max_train_steps=100000", "--trainer.checkpointing_steps=100000"]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").glob("*checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_every_stopping_signal_leaves_a_checkpoint(number, arguments, tmp_path):
    statuses = forked.run(lambda rank: train(endless(arguments), rank, [number]), tmp_path / "log.txt")
    assert statuses == [number], (tmp_path / "log.txt").read_text()[-2000:]
    assert checkpoints(tmp_path) == [f"checkpoint-{STOPPED_AT}"]


@pytest.mark.slow
def test_all_processes_stop_at_the_step_of_the_one_that_heard_it(arguments, tmp_path):
    """Send two signals to one process: a launcher repeats the one that its processes have got from the terminal."""

    def one(rank):
        train(endless(arguments), rank, [signal.SIGUSR1, signal.SIGTERM], victim=1)

    assert sorted(forked.run(one, tmp_path / "log.txt", processes=2)) != [0, 0]
    assert checkpoints(tmp_path) == [f"checkpoint-{STOPPED_AT}"], (tmp_path / "log.txt").read_text()[-2000:]
    assert max(tiny_run.losses(tmp_path / "run")) == STOPPED_AT


@pytest.mark.slow
def test_a_signal_during_the_last_checkpoint_does_not_cost_it(arguments, tmp_path):
    last = [*arguments, f"--trainer.max_train_steps={STOPPED_AT}", "--trainer.checkpointing_steps=100"]
    forked.run(lambda rank: train(last, rank, saving=signal.SIGTERM), tmp_path / "log.txt")
    assert checkpoints(tmp_path) == [f"checkpoint-{STOPPED_AT}"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_the_second_signal_ends_a_process_at_once(second, tmp_path):
    def twice():
        with Interrupt(ALONE):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), second)

    assert status_of(twice, tmp_path) == -second


def test_a_launchers_copy_of_a_signal_is_not_a_second_one(tmp_path):
    def repeated(pause):
        with Interrupt(LAUNCHED) as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            interrupt._since -= pause
            os.kill(os.getpid(), signal.SIGTERM)

    assert status_of(lambda: repeated(0), tmp_path) == 0
    assert status_of(lambda: repeated(2 * SAME_EVENT_SECONDS), tmp_path) == -signal.SIGTERM


def test_what_nohup_ignores_stays_ignored(tmp_path):
    def hung_up():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupt(ALONE) as interrupt:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0)
            assert interrupt._signal is None

    assert status_of(hung_up, tmp_path) == 0
