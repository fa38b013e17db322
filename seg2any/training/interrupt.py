"""Stop a run at the end of a step, in all processes alike, when a signal asks for it."""

from __future__ import annotations

import signal
import threading
import time

from accelerate import Accelerator

from seg2any.system.interrupts import STOPPING

SAME_EVENT_SECONDS = 3.0  # a launcher needs milliseconds, also for many processes on busy cores


class Interrupt:
    """Inside this context the first signal of STOPPING is only remembered; the second ends the process at once.

    SIGINT and SIGHUP stay ignored where they are, as in background jobs and under nohup. A launcher may pass on a
    signal that its processes have got from the terminal or from Slurm, too: to one of several processes, signals
    within SAME_EVENT_SECONDS are one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._patience = SAME_EVENT_SECONDS if accelerator.num_processes > 1 else 0.0
        self._previous: dict[signal.Signals, object] = {}
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._requested = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in STOPPING:
                if number in (signal.SIGINT, signal.SIGHUP) and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since > self._patience:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self._patience:  # the kernel acts even if this process hangs in C code
            for one in self._previous:
                signal.signal(one, signal.SIG_DFL)

    def requested(self) -> bool:
        """Tell whether any process got a signal.

        Every process must ask at the same moments, and all get one answer.
        """
        if self._signal is not None:
            self.accelerator.set_trigger()
        self._requested = self.accelerator.check_trigger() or self._requested
        return self._requested

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that stopped the run, SIGTERM if only another process got it.

        None while nothing is requested.
        """
        return (self._signal or signal.SIGTERM) if self._requested else None
