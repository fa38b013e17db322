"""Form batches of samples: shuffled, similar lengths together, resumable from one number."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process

LEFT_OUT = -1
WINDOW = 256  # groups that are sorted by length together
WINDOWS_PER_EPOCH = 8  # at least: with one window, a small data set would have the same batches in every epoch


class BatchSampler:
    """An endless iterator over this process's batches of indices, epoch after epoch.

    lengths       int [n, 2]: text and condition tokens of every sample of the data set
    batch_size    samples of one process
    seed          an epoch's order depends on (seed, epoch) and `group` only, so every process computes the whole order
    process       which part of the order is this process's
    buckets       int [n]: samples of different buckets have different image sizes, and no group mixes them; samples in
                  bucket LEFT_OUT are in no group. None: all samples have the same size
    accumulation  batches of each process that make one step

    Groups are samples of one size and of similar length, and the order is one group after another. Processes and
    accumulated batches take consecutive pieces of it: any of their numbers with the same samples in a step follow one
    order.

    The state is two numbers, the samples that all processes together have taken and those of a group. A run that
    goes on with another number of processes keeps both.

    Raises UserError if there is no sample.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int = 0,
        process: Process = ALONE,
        buckets: np.ndarray | None = None,
        accumulation: int = 1,
    ):
        self.lengths = np.asarray(lengths)
        self.buckets = np.zeros(len(lengths), np.int64) if buckets is None else np.asarray(buckets)
        present = np.flatnonzero(self.buckets != LEFT_OUT)
        if not len(present):
            raise UserError("data set: no sample is left to train on; see what was left out and why")
        self.batch_size, self.seed, self.process = batch_size, seed, process
        self.group = self._group_of(batch_size * process.count, accumulation)
        classes = self._classes()[present]
        self.members = [present[classes == number] for number in np.unique(classes)]
        self.taken = 0
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def groups_per_epoch(self) -> int:
        """Number of groups of one epoch."""
        raise NotImplementedError

    def epoch(self, number: int) -> np.ndarray:
        """Return all groups of one epoch: int64 [groups_per_epoch, group]."""
        raise NotImplementedError

    def _group_of(self, at_a_time: int, accumulation: int) -> int:
        """Return the samples of a group: those of one step. `at_a_time` are those of one batch of every process."""
        return at_a_time * accumulation

    def _classes(self) -> np.ndarray:
        """Return int [n]: samples of different classes never share a group."""
        raise NotImplementedError

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples that all processes together take in an epoch."""
        return self.groups_per_epoch * self.group

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of one process."""
        return self.samples_per_epoch // (self.batch_size * self.process.count)

    def set_epoch(self, number: int) -> None:
        """Go to the start of an epoch."""
        self.taken = number * self.samples_per_epoch

    def among_first(self, count: int) -> np.ndarray:
        """Return which samples are among the first `count` of the order: int64, ascending, each once."""
        seen, present = np.zeros(len(self.lengths), bool), sum(map(len, self.members))
        for start in range(0, count, self.samples_per_epoch):
            seen[self.epoch(start // self.samples_per_epoch).reshape(-1)[: count - start]] = True
            if seen.sum() == present:
                break
        return np.flatnonzero(seen)

    def own_until(self, count: int) -> np.ndarray:
        """Return which samples this process takes from here up to the first `count` of the order of all processes.

        int64, ascending, each once.
        """
        seen = np.zeros(len(self.lengths), bool)
        for number in range(self.taken // self.samples_per_epoch, -(-count // self.samples_per_epoch)):
            start = number * self.samples_per_epoch
            ahead = self.epoch(number).reshape(-1)[max(0, self.taken - start) : count - start]
            seen[ahead.reshape(-1, self.process.count, self.batch_size)[:, self.process.index]] = True
        return np.flatnonzero(seen)

    def ahead(self) -> BatchSampler:
        """Return a sampler at the same place that can run ahead of this one."""
        other = copy.copy(self)
        other._epoch = None
        return other

    def advance(self) -> None:
        """Go on by one batch of every process."""
        self.taken += self.batch_size * self.process.count

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        # Batches divide groups and groups epochs, so this process's batch is never in two of either.
        number, start = divmod(self.taken + self.process.index * self.batch_size, self.samples_per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.epoch(number).reshape(-1))
        self.advance()
        return self._epoch[1][start : start + self.batch_size].tolist()

    @cached_property
    def order(self) -> str:
        """A digest of what decides the order besides the size of a group."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.seed}".encode())
        for numbers in (self.lengths, self.buckets):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, int | str]:
        return {name: getattr(self, name) for name in ("taken", "group", "order")}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go to a saved place, and form groups of the saved size.

        Raises UserError for another order, and for a batch size that does not divide a group.
        """
        if state["order"] != self.order:
            raise UserError(
                f"checkpoint: its samples are in another order ({state['order']}, now {self.order}); resume with the "
                "same data, bucket map and trainer.sampler"
            )
        taken, group = place_of(state)
        if group % self.batch_size:
            raise UserError(
                f"trainer.train_batch_size: {self.batch_size} does not divide the groups of {group} samples in which "
                f"the checkpoint's run reads; resume with a divisor of {group}"
            )
        self.taken, self.group, self._epoch = taken, group, None


def place_of(state: Mapping[str, int | str]) -> tuple[int, int]:
    """Read a sampler's state: samples taken, and samples of a group.

    Older states count the batches of one process, and have one batch of every process as a group.
    """
    if "group" in state:
        return state["taken"], state["group"]
    group = state["batch_size"] * state["world"]
    return state["position"] * group, group


class LengthBatches(BatchSampler):
    """Batches of similar length in text and in condition.

    Every epoch is a new permutation. Windows of it are ordered by length and cut into groups of one step, so that all
    processes have work of one length. The groups are shuffled.

    No sample occurs twice in an epoch. The rest that fills no group, fewer samples of each bucket than `group`, waits
    for the next epochs; a bucket that is smaller than one group repeats samples to fill it.
    """

    def _classes(self) -> np.ndarray:
        return self.buckets

    @property
    def groups_per_epoch(self) -> int:
        return sum(max(1, len(members) // self.group) for members in self.members)

    def epoch(self, number: int) -> np.ndarray:
        shuffle = _Shuffle(self.seed, number)
        groups = np.concatenate([self._groups(shuffle(members)) for members in self.members])
        return shuffle(groups)

    def _groups(self, order: np.ndarray) -> np.ndarray:
        """Cut a permutation of one bucket into groups: [groups, group]."""
        n_groups = max(1, len(order) // self.group)
        order = np.resize(order, n_groups * self.group)
        window = min(WINDOW, -(-n_groups // WINDOWS_PER_EPOCH)) * self.group
        ordered = [self._by_length(order[start : start + window]) for start in range(0, len(order), window)]
        return np.concatenate(ordered).reshape(n_groups, self.group)

    def _by_length(self, window: np.ndarray) -> np.ndarray:
        """Order samples so that neighbours have similar text and similar condition lengths.

        Strips of similar condition are each ordered by text, ascending and descending in turn. Ordering by the sum pads
        several times as much, because text and condition are padded separately.
        """
        text, cond = self.lengths[window].T
        n_strips = max(1, round((len(window) / self.group) ** 0.5))
        rank = np.empty(len(window), np.int64)
        rank[np.argsort(cond, kind="stable")] = np.arange(len(window))
        strip = rank * n_strips // len(window)
        return window[np.lexsort((np.where(strip % 2, -text, text), strip))]


class PublishedBatches(BatchSampler):
    """The batches of the published code, equal to them index by index.

    Samples of one length class form groups of one batch for every process, whatever is accumulated; a class that does
    not fill its last group repeats random members of it, so rare lengths are seen more often. The published map counts
    text before it is cut.

    Raises UserError if there are several image sizes: the published code supports one.
    """

    def _classes(self) -> np.ndarray:
        if len(np.unique(self.buckets[self.buckets != LEFT_OUT])) > 1:
            raise UserError("trainer.sampler: published needs one image size; use length, or data.aspect stretch")
        text, cond = self.lengths.T
        return published_length_class(cond, text)

    def _group_of(self, at_a_time: int, accumulation: int) -> int:
        """Return the published size of a group."""
        return at_a_time

    @property
    def groups_per_epoch(self) -> int:
        return sum(-(-len(members) // self.group) for members in self.members)

    def epoch(self, number: int) -> np.ndarray:
        # The published code's generator, made anew: RandomState's sequence is the same in every version of NumPy.
        random = np.random.RandomState(self.seed + number)
        filled = []
        for members in self.members:
            order = members.copy()
            random.shuffle(order)
            filled += [order, random.choice(order, -len(order) % self.group)]
        groups = np.concatenate(filled).reshape(-1, self.group)
        return groups[random.permutation(len(groups))]


def published_length_class(cond_tokens, text_tokens):
    """Return the length class of the published code, 50 condition and 50 text tokens wide."""
    return cond_tokens // 50 + text_tokens // 50 * 1_000_000


class _Shuffle:
    """Permutations from (seed, epoch), by sorting raw numbers of PCG64.

    Unlike a generator's `permutation`, they are the same in every version of NumPy, so a run may be resumed after an
    upgrade.
    """

    def __init__(self, seed: int, epoch: int):
        self.bits = np.random.PCG64(np.random.SeedSequence((seed, epoch)))

    def __call__(self, items: np.ndarray) -> np.ndarray:
        return items[np.argsort(self.bits.random_raw(len(items)), kind="stable")]
