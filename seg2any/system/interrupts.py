"""Handle Ctrl-C: a command ends with one line and status 130, without a traceback.

Python raises KeyboardInterrupt between any two instructions. Inside a destructor or a callback it prints the exception
and goes on as if nothing had happened; an object that the exception left half made complains in its own destructor; and
C code of some libraries turns it into an ImportError, or loses it. So a command that goes on is interrupted again after
PATIENCE seconds, and one that hangs while it ends is ended.

`run_command` is for the process, `console.exit_status` for the message.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130
RETRY_SECONDS = 0.01
PATIENCE = 10.0  # seconds for cleaning up; then the interrupt was lost, or the process hangs

_seen = False  # a SIGINT arrived while the command ran
_reported = False  # the line about it is printed, or being printed
_finished = False  # nothing is left to be done but the interpreter's shutdown


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its status; from now on Ctrl-C leaves no traceback.

    In `main` a SIGINT raises KeyboardInterrupt; after `main` it ends the process at once. Where SIGINT is ignored, as
    in background jobs of a shell, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, _interrupt)
            # Registered first, so called last: after it Python drops its handlers, and an alarm would kill the process.
            atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
        sys.unraisablehook = _without_interrupts(sys.unraisablehook)
        threading.excepthook = _without_interrupts(threading.excepthook)
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
        report(os.path.basename(sys.argv[0]))
    _finish()
    sys.exit(status)


def was_interrupted() -> bool:
    """Tell whether SIGINT arrived under `run_command`, even if its exception was swallowed."""
    return _seen


def report(program: str, advice: str = "") -> None:
    """Print, once in a process, that the program was interrupted; a SIGINT meanwhile is ignored."""
    global _reported
    if _seen:
        _interrupt_again(PATIENCE)  # first, or an alarm could end the process before the line is printed
    already, _reported = _reported, True
    if not already or not _seen:
        print(f"{program}: interrupted" + (f"; {advice}" if advice else ""), file=sys.stderr, flush=True)


def _finish() -> None:
    global _finished
    _finished = True


def _interrupt(number: int, frame: object) -> None:
    """Handle SIGINT, and SIGALRM where the command goes on after it."""
    global _seen
    if _finished or (_reported and number != signal.SIGINT):
        if not _reported:
            os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))
        os._exit(INTERRUPTED)
    if not _reported:
        _seen = True
        _interrupt_again(PATIENCE)
        raise KeyboardInterrupt


def _interrupt_again(seconds: float) -> None:
    """Interrupt the main thread after a time, unless the process has ended by then.

    A timer of the system, since a thread cannot be started where a signal or a destructor may hold threading's locks.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _without_interrupts(hook: Callable) -> Callable:
    """Wrap a hook for uncatchable exceptions: send an interrupt again, hide its consequences."""

    def quiet(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            if hasattr(signal, "setitimer"):
                _interrupt_again(RETRY_SECONDS)
            else:
                _thread.interrupt_main()
        elif not _seen:
            hook(unraisable)

    return quiet
