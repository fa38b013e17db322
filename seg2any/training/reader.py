"""What the reading processes do: files in, small arrays out; no network, no device, nothing random."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from seg2any.training.encoded import Captions, captions_of_entry
from seg2any.training.store import Entry, Store, key_of

T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """How samples come to their size: `resolution` and `aspect` of the config, `patch` pixels per token side."""

    resolution: int
    aspect: str
    patch: int
    settings: ConditionSettings

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which a photo of that size is trained."""
        multiple = self.patch * self.settings.cond_scale_factor
        return target_size(stored, self.resolution, self.aspect, multiple)


@dataclass(frozen=True, eq=False)
class ReadSample:
    """A sample as a reading process hands it over: arrays and strings only, cheap to move between processes.

    It has the entry of the latents' cache, or else its pixels uint8 [H, W, 3] and its regions drawn for their size; and
    the entry of the texts' cache, which may be empty.
    """

    index: int
    key: str
    captions: Captions
    latents: Entry | None = None
    pixels: np.ndarray | None = None
    drawn: DrawnLayout | None = None
    texts: Entry = field(default_factory=dict)


class Reader:
    """Reads samples by index, from caches where there are any and from the files of `data` where not."""

    def __init__(self, data: DataSet, preparation: Preparation, latents: Store | None, texts: Store | None):
        self.data, self.preparation, self.latents, self.texts = data, preparation, latents, texts

    def __call__(self, index: int) -> ReadSample:
        """Raises SampleError if the sample cannot be used."""
        key = self.data.key(index)
        texts = _stored(self.texts, key_of(key)) if self.texts else {}
        if self.latents:
            entry = _stored(self.latents, latents_key(self.data, index))
            return ReadSample(index, key, captions_of_entry(entry), entry, texts=texts)
        sample = self.data[index]
        size = self.preparation.size(sample.layout.size)
        fitted = fit(sample, size, self.preparation.aspect)
        drawn = draw_layout(fitted.layout.masks, size, self.preparation.patch, self.preparation.settings)
        captions = Captions(sample.layout.caption, sample.layout.captions)
        return ReadSample(index, key, captions, pixels=fitted.image, drawn=drawn, texts=texts)

    def captions(self, index: int) -> Captions:
        """Without the pixels. Raises as reading the whole sample does."""
        if self.latents:
            return captions_of_entry(_stored(self.latents, latents_key(self.data, index)))
        annotation = self.data.annotation(index)
        return Captions(annotation.caption, annotation.captions)


def latents_key(data: DataSet, index: int) -> bytes:
    """Of a sample in the latents' cache: another photo of the same name is another sample."""
    return key_of(*filter(None, (data.key(index), data.photo_digest(index))))


def fault_entry(error: UserError) -> Entry:
    """What a cache holds of a sample that cannot be used, so that it is not tried again at every start."""
    line = f"{error} (known from trainer.cache_dir: once it is mended, remove the cache)"
    return {"fault": np.frombuffer(line.encode(), np.uint8)}


def _stored(store: Store, key: bytes) -> Entry:
    entry = store.read(key)
    if "fault" in entry:
        raise SampleError(entry["fault"].tobytes().decode())
    return entry


LAST_STEP_SECONDS = 60  # so long a reader lives after SIGTERM


def read_ahead(
    read: Callable[[int], T], batches: Iterable[Sequence[int]], workers: int
) -> Iterator[list[T | UserError]]:
    """What `read` makes of each index, batch by batch and in order. `workers` processes read ahead; 0: none does.

    A UserError that `read` raises comes in place of its result: what to do about it is not the readers' business.
    """
    loader = DataLoader(
        _Reading(read),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else starting to read would use up global random numbers
    )
    return iter(loader)


class _Reading(Dataset):
    def __init__(self, read: Callable[[int], object]):
        self.read = read

    def __getitem__(self, index: int) -> object:
        try:
            return self.read(index)
        except UserError as error:
            return error


def _start_worker(number: int) -> None:
    """A signal to the whole group stops the run at the end of a step; until then it needs its readers.

    Not for ever: a run that ends by an error terminates its readers and waits for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_STEP_SECONDS))
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
