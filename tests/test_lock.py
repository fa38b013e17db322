"""File locks: held by one process until it ends or is killed."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from seg2any.system import files
from seg2any.system.files import locked
from tests.forked import holding
from tests.golden_root import REPOSITORY

TAKING = """
import os, sys, time
from pathlib import Path
from seg2any.system.files import locked

out = Path(sys.argv[1])
for number in range(6):
    with locked(out / f"{number}.lock") as is_ours:
        done = out / f"{number}.done"
        if is_ours and not done.exists():
            time.sleep(0.05)
            with open(out / f"made-{os.getpid()}", "a") as file:
                print(number, file=file)
            done.touch()
"""


def test_two_processes_process_every_part_once(tmp_path):
    command = [sys.executable, "-c", TAKING, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    taken = [line for path in tmp_path.glob("made-*") for line in path.read_text().splitlines()]
    assert sorted(taken) == list("012345")


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path):
    path = tmp_path / "new" / "file"
    with holding(path):
        for shared in (False, True):
            with locked(path, shared) as is_ours:
                assert not is_ours
    with locked(path) as is_ours:
        assert is_ours


def test_several_processes_share_a_lock_and_exclude_an_exclusive_holder(tmp_path):
    with holding(tmp_path / "file", shared=True):
        with locked(tmp_path / "file", shared=True) as is_ours:
            assert is_ours
        with locked(tmp_path / "file") as is_ours:
            assert not is_ours


def test_a_forked_process_does_not_keep_it(tmp_path):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with locked(tmp_path / "file"):
            if (grandchild := os.fork()) == 0:
                signal.pause()
            os.write(writing, grandchild.to_bytes(4, "big"))
            signal.pause()
    grandchild = int.from_bytes(os.read(reading, 4), "big")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        with locked(tmp_path / "file") as is_ours:
            assert is_ours
    finally:
        os.kill(grandchild, signal.SIGKILL)


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("missing", ["module", "file system"])
def test_unavailable_locking_is_warned_about(tmp_path, monkeypatch, missing):
    if missing == "module":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    with (
        pytest.warns(UserWarning, match=f"{tmp_path}/file: files cannot be locked here"),
        locked(tmp_path / "file") as had,
    ):
        assert had
