"""Let writing fail at any system call: in a forked child, by an error or by SIGKILL.

Python announces opening, renaming, removing and making of files to audit hooks, for all libraries that ask Python;
`os.fsync` and `os.ftruncate` are wrapped. Writes happen in C, C++ and Rust, where no hook sees them: there the kernel
itself refuses to let a file grow beyond a limit (as on a full disk), or kills the process that tries.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
KILL = 0


@dataclass(frozen=True)
class Fault:
    """What happens to a write: at call number `call` (from 1), or when a file grows beyond `size` bytes.

    error  an errno, or KILL
    """

    error: int
    call: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a write ended: exit status (minus the signal), its exception's type and text, and its number of calls."""

    status: int
    kind: str
    message: str
    calls: int


def attempt(write: Callable[[], None], folder: Path, fault: Fault | None = None) -> Ended:
    """Call `write`, which works in `folder`, in a child process that suffers a fault."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        _be_the_child(write, str(folder), fault or Fault(KILL), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        calls, kind, message = (pipe.read().decode().split("\0") + ["", ""])[:3]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(status, kind, message, int(calls or 0))


def _be_the_child(write: Callable[[], None], folder: str, fault: Fault, pipe: int) -> None:
    calls, armed = 0, True

    def count(what: str) -> None:
        nonlocal calls
        if not armed:
            return
        calls += 1
        if calls == fault.call:
            if fault.error == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(fault.error, os.strerror(fault.error), what)

    def hook(event: str, given: tuple) -> None:
        if event in EVENTS and isinstance(given[0], (str, os.PathLike)) and os.fspath(given[0]).startswith(folder):
            count(f"{event} {given[0]}")

    def counted(name: str) -> None:
        original = getattr(os, name)
        setattr(os, name, lambda *given: (count(name), original(*given))[1])

    kind = message = ""
    try:
        if fault.size is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.error == KILL else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, fault.size))
        counted("fsync")
        counted("ftruncate")
        sys.addaudithook(hook)
        write()
    except BaseException as error:
        kind, message = ",".join(one.__name__ for one in type(error).__mro__), str(error)
    armed = False
    os.write(pipe, f"{calls}\0{kind}\0{message}".encode())
    os._exit(0)


def plan(calls: int, size: int) -> list[Fault]:
    """List the faults of a write that makes `calls` calls and a file of `size` bytes."""
    found = [Fault(ERRORS[call % 3], call) for call in range(1, calls + 1)]
    found += [Fault(KILL, call) for call in range(1, calls + 1)]
    limits = sorted({0, 1, size // 2, max(0, size - 1)})
    return found + [Fault(error, size=limit) for limit in limits for error in (errno.EFBIG, KILL)]
