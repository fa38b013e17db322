"""Do work on a stranger's file in a process of its own, whose time and memory end where `limits` say.

For servers: whatever a decoder does with a hostile file, the process that answers others stays as it is. The work
returns a text and writes files; nothing that the process sends is unpickled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from seg2any.system.errors import UserError
from seg2any.system.limits import Limits, choose_limits, limits

LONGEST_REPLY = 1 << 20  # bytes
START_SECONDS = 20.0  # for Python and the libraries, on a busy machine
DONE, REFUSED = b"done ", b"refused "


def confined(where: str, work: Callable[..., str], *arguments: object) -> str:
    """Return `work(*arguments)`, done in a process of its own under the limits that stand here.

    where  the file, for messages
    work   a function of a module; it and the arguments are pickled

    Raises UserError: that of `work`, or one that says that the file took too much time or memory.
    """
    most = limits()
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, most, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(most.seconds + START_SECONDS):
            raise UserError(f"{where}: took more than {most.seconds:g} seconds; give a smaller file")
        reply = receiver.recv_bytes(LONGEST_REPLY)
    except (EOFError, OSError):
        needed = f"the process that read it was killed or needed more than {most.memory_bytes >> 20} MiB"
        raise UserError(f"{where}: {needed}; give a smaller file") from None
    finally:
        receiver.close()
        process.kill()
        process.join()
    if reply.startswith(DONE):
        return reply.removeprefix(DONE).decode(errors="replace")
    raise UserError(" ".join(reply.removeprefix(REFUSED).decode(errors="replace").split()))


def _run(sender: Connection, most: Limits, work: Callable[..., str], arguments: tuple[object, ...]) -> None:
    choose_limits(most)
    _bound_resources(most)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - of a process that ends right away
    try:
        reply = DONE + work(*arguments).encode(errors="backslashreplace")
    except UserError as error:
        reply = REFUSED + str(error).encode(errors="backslashreplace")
    except MemoryError:
        return
    sender.send_bytes(reply[:LONGEST_REPLY])


def _bound_resources(most: Limits) -> None:
    """Let the kernel end this process if it takes more time or memory; elsewhere only the parent bounds its time."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        seconds = int(most.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bytes_ = pages * resource.getpagesize() + most.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
