"""Read samples from their files or from caches, in this process or ahead of it in others.

Reading processes turn files into small arrays; they use no network, no device and no random numbers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from seg2any.attention.settings import ConditionSettings
from seg2any.data.aspect import fit, target_size
from seg2any.data.dataset import DataSet, SampleError
from seg2any.diffusion.prepare import DrawnLayout, draw_layout
from seg2any.system.errors import UserError
from seg2any.system.interrupts import STOPPING
from seg2any.training.samples import Captions, captions_of_entry
from seg2any.training.store import Entry, Store, key_of

T = TypeVar("T")
LAST_STEP_SECONDS = 60  # how long a reading process lives on after SIGTERM


@dataclass(frozen=True)
class Preparation:
    """Sizes of training: `resolution` and `aspect` of the config, `patch` pixels per token side."""

    resolution: int
    aspect: str
    patch: int
    settings: ConditionSettings

    @property
    def drawing(self) -> ConditionSettings:
        """Return settings that draw regions: a loss may read them, and their coverage, also under plain settings."""
        if not self.settings.is_plain:
            return self.settings
        soft = {"attention_mask_method": "place", "attention_backend": "auto"}
        return self.settings.override({**soft, "is_use_cond_token": False})

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) at which a photo of size `stored` is trained."""
        multiple = self.patch * self.settings.cond_scale_factor
        return target_size(stored, self.resolution, self.aspect, multiple)


@dataclass(frozen=True, eq=False)
class ReadSample:
    """A sample as read from its files or caches: arrays and strings, cheap to send.

    latents        entry of the latents' cache; without one:
    pixels, drawn  uint8 [H, W, 3], and the regions drawn for that size
    texts          entry of the texts' cache; None without one
    """

    index: int
    key: str
    captions: Captions
    latents: Entry | None = None
    pixels: np.ndarray | None = None
    drawn: DrawnLayout | None = None
    texts: Entry | None = None


class Reader:
    """Reads samples by index, from the caches if they hold them, else from the files of `data`.

    latents, texts  None: these are not cached
    """

    def __init__(self, data: DataSet, preparation: Preparation, latents: Store | None, texts: Store | None):
        self.data, self.preparation, self.latents, self.texts = data, preparation, latents, texts

    def __call__(self, index: int) -> ReadSample:
        """Read sample `index`. Raises SampleError if it cannot be used."""
        key = self.data.key(index)
        latents, texts = self.kept(index)
        if latents is not None:
            return ReadSample(index, key, captions_of_entry(latents), latents, texts=texts)
        sample = self.data[index]
        size = self.preparation.size(sample.layout.size)
        fitted = fit(sample, size, self.preparation.aspect)
        drawn = draw_layout(fitted.layout.visible, size, self.preparation.patch, self.preparation.drawing)
        captions = Captions(sample.layout.caption, sample.layout.captions)
        return ReadSample(index, key, captions, pixels=fitted.image, drawn=drawn, texts=texts)

    def captions(self, index: int) -> Captions:
        """Read the captions of sample `index` only. Raises SampleError if it cannot be used."""
        if self.latents and (entry := _stored(self.latents, latents_key(self.data, index))) is not None:
            return captions_of_entry(entry)
        annotation = self.data.annotation(index)
        return Captions(annotation.caption, annotation.captions)

    def kept(self, index: int) -> tuple[Entry | None, Entry | None]:
        """Read the cached latents and texts of sample `index`; None for what is not cached.

        Raises SampleError if a cache knows that the sample cannot be used.
        """
        entries = [_stored(store, key(self.data, index)) if store else None for store, key in self._caches()]
        return entries[0], entries[1]

    def missing(self, indices: Sequence[int]) -> np.ndarray:
        """Return the positions in `indices` of samples that a cache lacks, int64, ascending."""
        lacking = np.zeros(len(indices), bool)
        for store, key in self._caches():
            if store:
                lacking[store.missing([key(self.data, index) for index in indices])] = True
        return np.flatnonzero(lacking)

    def is_in_memory(self, index: int) -> bool:
        """Tell whether this process can read sample `index` without any file."""
        stores = [(store, key) for store, key in self._caches() if store]
        return bool(self.latents) and all(store.is_in_memory(key(self.data, index)) for store, key in stores)

    def _caches(self) -> tuple[tuple[Store | None, Callable[[DataSet, int], bytes]], ...]:
        return (self.latents, latents_key), (self.texts, texts_key)


def latents_key(data: DataSet, index: int) -> bytes:
    """Return a sample's key in the latents' cache.

    Another photo under the same name has another key.
    """
    return key_of(*filter(None, (data.key(index), data.photo_digest(index))))


def texts_key(data: DataSet, index: int) -> bytes:
    """Return a sample's key in the texts' cache."""
    return key_of(data.key(index))


def fault_entry(error: UserError) -> Entry:
    """Pack the error of an unusable sample, so that it is not tried again at every start."""
    line = f"{error} (known from trainer.cache_dir; after repairing the file, remove the cache)"
    return {"fault": np.frombuffer(line.encode(), np.uint8)}


def _stored(store: Store, key: bytes) -> Entry | None:
    """Read an entry that this or another process has added; None if there is none."""
    if len(store.missing([key])):
        store.refresh()
        if len(store.missing([key])):
            return None
    entry = store.read(key)
    if "fault" in entry:
        raise SampleError(entry["fault"].tobytes().decode())
    return entry


def read_ahead(
    read: Callable[[int], T], batches: Iterable[Sequence[int]], workers: int
) -> Iterator[list[T | UserError]]:
    """Yield the results of `read` batch by batch, in order.

    `workers` processes read ahead, none with 0.

    A UserError that `read` raises takes the place of its result, for the caller to handle.
    """
    loader = DataLoader(
        _Reading(read),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else starting to read would draw from the global generator
    )
    return iter(loader)


class _Reading(Dataset):
    def __init__(self, read: Callable[[int], object]):
        self.read = read

    def __getitem__(self, index: int) -> object:
        return result_or_error(self.read, index)


def result_or_error(read: Callable[[int], T], index: int) -> T | UserError:
    """Call `read`; return the UserError that it raises in place of its result."""
    try:
        return read(index)
    except UserError as error:
        return error


def _start_worker(number: int) -> None:
    """Keep a reading process alive after the signals of STOPPING, until its run ends the step.

    After SIGTERM the time is limited, because a run that ends with an error terminates its readers and waits for them.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_STEP_SECONDS))
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
