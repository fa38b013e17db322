"""Ask a model that may fail to answer again, with growing waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """A model gave no usable answer, but may if asked again after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """The number of times that a question is asked again.

    attempts      attempts in all
    first_wait    seconds before the second attempt; every further wait is twice as long
    longest_wait  seconds, the longest wait
    hopeless      questions in a row without an answer after which no more are asked
    """

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    hopeless: int = 20


def patiently(ask: Callable[[], Answer], patience: Patience, stopped: threading.Event) -> Answer:
    """Return the answer of `ask()`, called until it does not raise NoAnswer.

    stopped  ends the waiting as soon as it is set

    Raises NoAnswer with the last reason after all attempts, and whatever else `ask` raises at once.
    """
    wait, problem = patience.first_wait, NoAnswer("interrupted")
    for attempt in range(patience.attempts):
        if stopped.is_set():
            break
        try:
            return ask()
        except NoAnswer as none:
            problem = none
            if attempt + 1 < patience.attempts:
                stopped.wait(min(max(wait, none.wait), patience.longest_wait))
                wait *= 2
    raise problem
