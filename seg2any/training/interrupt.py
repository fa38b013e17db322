"""Stopping a run without losing work."""

from __future__ import annotations

import signal
import threading

from accelerate import Accelerator


class Interrupt:
    """Inside this context the first SIGTERM or SIGINT is only remembered; a second one acts as usual."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._previous: dict[int, object] = {}
        self._signal: signal.Signals | None = None
        self._requested = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def _remember(self, number, frame) -> None:
        self._signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def requested(self) -> bool:
        """Whether any process got a signal; every process must ask at the same moments, and all get one answer."""
        if self._signal is not None:
            self.accelerator.set_trigger()
        self._requested = self.accelerator.check_trigger() or self._requested
        return self._requested

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that stopped the run, SIGTERM if only another process got it; None while nothing is requested."""
        return (self._signal or signal.SIGTERM) if self._requested else None
