"""Form batches of samples: shuffled, similar lengths together, resumable from one number."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process

LEFT_OUT = -1
WINDOW = 256  # groups (a batch for every process) that are sorted by length together
WINDOWS_PER_EPOCH = 8  # at least: with one window, a small data set would have the same batches in every epoch


class BatchSampler:
    """An endless iterator over this process's batches of indices, epoch after epoch.

    lengths     int [n, 2]: text and condition tokens of every sample of the data set
    batch_size  samples of one process
    seed        an epoch's order depends on (seed, epoch) only, so every process computes the whole order
    process     which batch of each group is this process's
    buckets     int [n]: samples of different buckets have different image sizes, and no batch mixes them; samples in
                bucket LEFT_OUT are in no batch. None: all samples have the same size

    The state is one number: the batches that this process has handed out. With other samples, another batch size or
    another number of processes the number would mean another place, so `load_state_dict` refuses it.

    Raises UserError if there is no sample.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int = 0,
        process: Process = ALONE,
        buckets: np.ndarray | None = None,
    ):
        self.lengths = np.asarray(lengths)
        self.buckets = np.zeros(len(lengths), np.int64) if buckets is None else np.asarray(buckets)
        present = np.flatnonzero(self.buckets != LEFT_OUT)
        if not len(present):
            raise UserError("data set: no sample is left to train on; see what was left out and why")
        self.batch_size, self.seed, self.process, self.world = batch_size, seed, process, process.count
        classes = self._classes()[present]
        self.members = [present[classes == number] for number in np.unique(classes)]
        self.position = 0
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of one process."""
        raise NotImplementedError

    def epoch(self, number: int) -> np.ndarray:
        """Return all batches of one epoch: int64 [batches_per_epoch, world, batch_size]."""
        raise NotImplementedError

    @property
    def _group(self) -> int:
        """Number of samples of one step on all processes."""
        return self.batch_size * self.world

    def _classes(self) -> np.ndarray:
        """Return int [n]: samples of different classes never share a batch."""
        raise NotImplementedError

    def set_epoch(self, number: int) -> None:
        """Go to the start of an epoch."""
        self.position = number * self.batches_per_epoch

    def ahead(self) -> BatchSampler:
        """Return a sampler at the same place that can run ahead of this one."""
        other = copy.copy(self)
        other._epoch = None
        return other

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        number, index = divmod(self.position, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.epoch(number)[:, self.process.index].copy())
        self.position += 1
        return self._epoch[1][index].tolist()

    @cached_property
    def order(self) -> str:
        """A digest of what decides the order besides batch size and number of processes."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.seed}".encode())
        for numbers in (self.lengths, self.buckets):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, int | str]:
        names = ("position", "batch_size", "world", "order")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go to a saved place. Raises UserError for the state of a sampler with other batches."""
        now = self.state_dict()
        for key, what in (("batch_size", "batches of"), ("world", "processes:"), ("order", "lengths and order")):
            if state[key] != now[key]:
                raise UserError(
                    f"checkpoint: it has other batches ({what} {state[key]}, now {now[key]}); resume with the same "
                    "data, bucket map, trainer.sampler, batch size and number of processes"
                )
        self.position = state["position"]


class LengthBatches(BatchSampler):
    """Batches of similar length in text and in condition.

    Every epoch is a new permutation. Windows of it are ordered by length and cut into groups of one batch for every
    process, so that at each step all processes have work of one length. The groups are shuffled.

    No sample occurs twice in an epoch. The rest that fills no group, fewer than `world * batch_size` samples of each
    bucket, waits for the next epochs; a bucket that is smaller than one group repeats samples to fill it.
    """

    def _classes(self) -> np.ndarray:
        return self.buckets

    @property
    def batches_per_epoch(self) -> int:
        return sum(max(1, len(members) // self._group) for members in self.members)

    def epoch(self, number: int) -> np.ndarray:
        shuffle = _Shuffle(self.seed, number)
        groups = np.concatenate([self._groups(shuffle(members)) for members in self.members])
        return shuffle(groups).reshape(-1, self.world, self.batch_size)

    def _groups(self, order: np.ndarray) -> np.ndarray:
        """Cut a permutation of one bucket into groups: [groups, world * batch_size]."""
        n_groups = max(1, len(order) // self._group)
        order = np.resize(order, n_groups * self._group)
        window = min(WINDOW, -(-n_groups // WINDOWS_PER_EPOCH)) * self._group
        ordered = [self._by_length(order[start : start + window]) for start in range(0, len(order), window)]
        return np.concatenate(ordered).reshape(n_groups, self._group)

    def _by_length(self, window: np.ndarray) -> np.ndarray:
        """Order samples so that neighbours have similar text and similar condition lengths.

        Strips of similar condition are each ordered by text, ascending and descending in turn. Ordering by the sum pads
        several times as much, because text and condition are padded separately.
        """
        text, cond = self.lengths[window].T
        n_strips = max(1, round((len(window) / self._group) ** 0.5))
        rank = np.empty(len(window), np.int64)
        rank[np.argsort(cond, kind="stable")] = np.arange(len(window))
        strip = rank * n_strips // len(window)
        return window[np.lexsort((np.where(strip % 2, -text, text), strip))]


class PublishedBatches(BatchSampler):
    """The batches of the published code, equal to them index by index.

    Samples of one length class form groups of `world * batch_size`; a class that does not fill its last group repeats
    random members of it, so rare lengths are seen more often. The published map counts text before it is cut.

    Raises UserError if there are several image sizes: the published code supports one.
    """

    def _classes(self) -> np.ndarray:
        if len(np.unique(self.buckets[self.buckets != LEFT_OUT])) > 1:
            raise UserError("trainer.sampler: published needs one image size; use length, or data.aspect stretch")
        text, cond = self.lengths.T
        return published_length_class(cond, text)

    @property
    def batches_per_epoch(self) -> int:
        return sum(-(-len(members) // self._group) for members in self.members)

    def epoch(self, number: int) -> np.ndarray:
        # The published code's generator, made anew: RandomState's sequence is the same in every version of NumPy.
        random = np.random.RandomState(self.seed + number)
        filled = []
        for members in self.members:
            order = members.copy()
            random.shuffle(order)
            filled += [order, random.choice(order, -len(order) % self._group)]
        groups = np.concatenate(filled).reshape(-1, self.world, self.batch_size)
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
