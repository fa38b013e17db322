"""Run functions in forked processes, which can be killed and need no seconds of imports."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import seg2any.training.tasks.generation
import seg2any.training.trainer  # noqa: F401 - here, or every forked run would import it again
from seg2any.system.files import locked
from tests.tiny_run import forget_accelerate, free_port

ZERO2 = {  # the environment that `accelerate launch --config_file config/deepspeed_stage2.yaml` sets
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
}
DDP = {"ACCELERATE_USE_CPU": "true"}


def run(
    function: Callable[[int], None], log: Path, processes: int = 1, environment: Mapping[str, str] = DDP
) -> list[int]:
    """Run `function(rank)` in forked processes and return their exit statuses.

    The status of a killed process is minus the signal. When one process fails the others are killed, as launchers do.
    Their output is appended to `log`.
    """
    port, children = free_port(), []
    for rank in range(processes):
        if (child := os.fork()) == 0:
            _be_a_child(function, rank, processes, port, log, environment)
        children.append(child)
    return _wait(children)


@contextlib.contextmanager
def holding(path: Path, shared: bool = False) -> Iterator[None]:
    """Let another process hold the lock of `path` inside the block, then kill that process."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with locked(path, shared):
            os.write(writing, b"1")
            signal.pause()
    os.read(reading, 1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def _be_a_child(function, rank, processes, port, log, environment) -> None:
    status = 1
    gc.freeze()  # what the tests hold is not looked through by this process
    forget_accelerate()
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
        if processes > 1:
            os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            os.environ.update(LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        function(rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(children: list[int], seconds: float = 240) -> list[int]:
    statuses: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(statuses) < len(children):
        for child in set(children) - statuses.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > end:
            for child in set(children) - statuses.keys():
                os.kill(child, signal.SIGKILL)
                statuses[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)
    return [statuses[child] for child in children]
