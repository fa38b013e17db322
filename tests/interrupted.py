"""Run a command and send it SIGINT at many moments.

Usage: `python -m tests.interrupted EVENT EVERY SCRIPT ARGUMENTS ...`

EVENT is `import` (a module is about to be loaded) or `call` (a Python function begins). At every EVERY-th event the
process forks; the child sends SIGINT to itself at that point and continues. The parent records how the child ended, so
one run covers hundreds of moments without depending on a clock. The last line of stdout is a JSON list with the place,
the exit status and the stderr of every child.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile
import threading

SECONDS = 20  # a child that continues longer than this after the interrupt is killed


class Interrupter:
    """Count events and fork; `found` holds [place, status, stderr] per child."""

    def __init__(self, every: int):
        self.every, self.count, self.busy = every, 0, False
        self.found: list[list] = []

    def visit(self, place: str) -> None:
        """Count an event; at every `every`-th one, fork a copy of this process and interrupt it."""
        armed = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        if self.busy or not armed or threading.current_thread() is not threading.main_thread():
            return
        self.count += 1
        if self.count % self.every == 0:
            self.busy = True
            self._interrupt_a_copy(place)
            self.busy = False

    def _interrupt_a_copy(self, place: str) -> None:
        with tempfile.TemporaryFile() as errors:
            if (child := os.fork()) == 0:
                sys.setprofile(None)
                os.dup2(errors.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                signal.alarm(SECONDS)
                os.kill(os.getpid(), signal.SIGINT)
                return  # the child continues with `busy` set, so that it does not fork again
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            errors.seek(0)
            self.found.append([place, status, errors.read().decode(errors="replace")])


def main(event: str, every: str, script: str, *arguments: str) -> None:
    interrupter = Interrupter(int(every))
    if event == "import":
        sys.addaudithook(lambda name, given: interrupter.visit(given[0]) if name == "import" else None)
    else:
        sys.setprofile(
            lambda frame, kind, _: (
                interrupter.visit(f"{frame.f_code.co_filename}:{frame.f_code.co_name}") if kind == "call" else None
            )
        )
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.setprofile(None)
        if not interrupter.busy:
            print(json.dumps(interrupter.found))


if __name__ == "__main__":
    main(*sys.argv[1:])
