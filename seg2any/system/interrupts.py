"""Handle Ctrl-C and the signals of batch systems: a command ends with one line, without a traceback.

Python raises KeyboardInterrupt between any two instructions. Inside a destructor or a callback it prints the exception
and goes on as if nothing had happened; an object that the exception left half made complains in its own destructor; and
C code of some libraries turns it into an ImportError, or loses it. So a command that goes on is interrupted again after
PATIENCE seconds, and one that hangs while it ends is ended. The exit status is 128 plus the number of the signal.

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

# What asks a program to end: Ctrl-C, kill, a closed terminal, and Slurm's --signal=USR1@120. Windows has the first two.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
RETRY_SECONDS = 0.01
PATIENCE = 10.0  # seconds for cleaning up; then the interrupt was lost, or the process hangs

_seen = 0  # number of the first signal that arrived while the command ran
_reported = False  # the line about it is printed, or being printed
_finished = False  # nothing is left to be done but the interpreter's shutdown


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its status; from now on the signals of STOPPING leave no traceback.

    In `main` they raise KeyboardInterrupt; after `main` they end the process at once. What is ignored stays ignored: in
    background jobs of a shell SIGINT, under nohup SIGHUP.
    """
    heard = [one for one in STOPPING if signal.getsignal(one) in (signal.default_int_handler, signal.SIG_DFL)]
    for one in heard:
        signal.signal(one, _interrupt)
    if heard:
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
        status = exit_status()
        report(os.path.basename(sys.argv[0]))
    _finish()
    sys.exit(status)


def was_interrupted() -> bool:
    """Tell whether a signal arrived under `run_command`, even if its exception was swallowed."""
    return bool(_seen)


def exit_status() -> int:
    """Return the exit status of an interrupted process: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_seen or signal.SIGINT)


def report(program: str, advice: str = "") -> None:
    """Print, once in a process, that the program was interrupted; a SIGINT meanwhile is ignored."""
    global _reported
    if _seen:
        _interrupt_again(PATIENCE)  # first, or an alarm could end the process before the line is printed
    already, _reported = _reported, True
    if not already or not _seen:
        print(f"{program}: {_what()}" + (f"; {advice}" if advice else ""), file=sys.stderr, flush=True)


def _what() -> str:
    return "interrupted" if _seen in (0, signal.SIGINT) else f"interrupted by {signal.Signals(_seen).name}"


def _finish() -> None:
    global _finished
    _finished = True


def _interrupt(number: int, frame: object) -> None:
    """Handle the signals of STOPPING, and SIGALRM where the command goes on after them."""
    global _seen
    _seen = _seen or number
    if _finished or (_reported and number != signal.SIGINT):
        if not _reported:
            os.write(2, f"{os.path.basename(sys.argv[0])}: {_what()}\n".encode(errors="replace"))
        os._exit(exit_status())
    if not _reported:
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
