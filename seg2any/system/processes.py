"""Share the work of a run between its processes, and wait for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from seg2any.system.cores import n_processes_at_a_time
from seg2any.system.errors import UserError

T = TypeVar("T")

PATIENCE = 300.0  # seconds without progress of the other processes before their work is done here
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    """Process `index` of the `count` processes of a run; alone by default.

    On its machine, it is number `local` of `local_count`.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    is_on_cpu: bool = False  # the launcher asked for a CPU

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Process:
        """Read the variables of torchrun and accelerate's launcher; without WORLD_SIZE, alone.

        Raises UserError for a launcher that contradicts itself.
        """
        if "WORLD_SIZE" not in environment:  # a RANK alone is left over from another program
            return cls(is_on_cpu=_is_on_cpu(environment))
        index, count = _whole(environment, "RANK", 0), _whole(environment, "WORLD_SIZE", 1)
        if not 0 <= index < count:
            raise UserError(f"RANK {index} of WORLD_SIZE {count}: ranks are 0 to {count - 1}; check the launcher")
        local, local_count = _whole(environment, "LOCAL_RANK", index), _whole(environment, "LOCAL_WORLD_SIZE", count)
        return cls(index, count, local, local_count, _is_on_cpu(environment))

    @property
    def is_first(self) -> bool:
        """Tell whether this process prints, warns and writes what one process does for all."""
        return self.index == 0

    def __str__(self) -> str:
        """Return the prefix of this process's messages: "process 2 of 4: ", or "" if it is alone."""
        return f"process {self.index + 1} of {self.count}: " if self.count > 1 else ""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th item from `index` on: each item belongs to one process."""
        return items[self.index :: self.count]

    def consecutive_share(self, n_items: int) -> range:
        """Return this process's share of range(n_items), in one piece; sizes differ by at most 1."""
        size, larger = divmod(n_items, self.count)
        start = self.index * size + min(self.index, larger)
        return range(start, start + size + (self.index < larger))

    @property
    def cores(self) -> int:
        """Number of CPU cores per process of this run on this machine; at least 1."""
        return max(1, n_processes_at_a_time() // self.local_count)


ALONE = Process()


def wait_for_others(left: Callable[[], int], do_rest: Callable[[], None], patience: float = PATIENCE) -> None:
    """Return when `left()`, the amount of work that is not finished, is 0.

    The other processes are expected to do it. They may have been killed, or write to another machine's folder: when
    `left()` has not changed for `patience` seconds, `do_rest()` does the work here.
    """
    now, since = left(), time.monotonic()
    while now:
        time.sleep(min(POLL_SECONDS, patience))
        before, now = now, left()
        if now != before:
            since = time.monotonic()
        elif time.monotonic() - since > patience:
            do_rest()
            now, since = left(), time.monotonic()


def wait_for_all(process: Process, environment: Mapping[str, str]) -> None:
    """Return when every process of torchrun or accelerate's launcher has called this.

    A launcher ends all processes as soon as one ends with an error, so one that has an error to tell has to wait.
    Without a store of the launcher's there is nothing to wait for.
    """
    if process.count == 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # late: most runs need no torch here

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    key = f"seg2any/done/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store.add(key, 1)
    while store.add(key, 0) < process.count:
        time.sleep(POLL_SECONDS)


def _is_on_cpu(environment: Mapping[str, str]) -> bool:
    return environment.get("ACCELERATE_USE_CPU", "").lower() == "true"


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise UserError(f"{name} is {environment[name]!r}, not a whole number; check the launcher") from None
