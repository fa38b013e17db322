"""Read samples ahead of training, encode them when their step comes, and hand out batches.

Reading processes turn files into small arrays; they use no network, no device and no random numbers.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.aspect import fit, target_size
from seg2any.data.dataset import DataSet, SampleError
from seg2any.data.sampler import LEFT_OUT, BatchSampler, LengthBatches, PublishedBatches
from seg2any.diffusion.prepare import DrawnLayout, draw_layout
from seg2any.system.errors import UserError
from seg2any.system.interrupts import STOPPING
from seg2any.system.processes import ALONE, Process
from seg2any.training.samples import (
    Captions,
    EncodedSample,
    add_embeddings,
    captions_of_entry,
    encode_latents,
    latents_of_entry,
    texts_of_entry,
)
from seg2any.training.store import CacheError, Entry, Store, key_of
from seg2any.training.task import Batch
from seg2any.training.token_counts import TokenCounts

T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """Sizes of training: `resolution` and `aspect` of the config, `patch` pixels per token side."""

    resolution: int
    aspect: str
    patch: int
    settings: ConditionSettings

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) at which a photo of size `stored` is trained."""
        multiple = self.patch * self.settings.cond_scale_factor
        return target_size(stored, self.resolution, self.aspect, multiple)


@dataclass(frozen=True, eq=False)
class ReadSample:
    """A sample as read from its files or caches: arrays and strings, cheap to send.

    latents        entry of the latents' cache; without one:
    pixels, drawn  uint8 [H, W, 3], and the regions drawn for that size
    texts          entry of the texts' cache, may be empty
    """

    index: int
    key: str
    captions: Captions
    latents: Entry | None = None
    pixels: np.ndarray | None = None
    drawn: DrawnLayout | None = None
    texts: Entry = field(default_factory=dict)


class Reader:
    """Reads samples by index, from the caches if there are any, else from the files of `data`."""

    def __init__(self, data: DataSet, preparation: Preparation, latents: Store | None, texts: Store | None):
        self.data, self.preparation, self.latents, self.texts = data, preparation, latents, texts

    def __call__(self, index: int) -> ReadSample:
        """Read sample `index`. Raises SampleError if it cannot be used."""
        key = self.data.key(index)
        texts = _stored(self.texts, key_of(key)) if self.texts else {}
        if self.latents:
            entry = _stored(self.latents, latents_key(self.data, index))
            return ReadSample(index, key, captions_of_entry(entry), entry, texts=texts)
        sample = self.data[index]
        size = self.preparation.size(sample.layout.size)
        fitted = fit(sample, size, self.preparation.aspect)
        drawn = draw_layout(fitted.layout.visible, size, self.preparation.patch, self.preparation.settings)
        captions = Captions(sample.layout.caption, sample.layout.captions)
        return ReadSample(index, key, captions, pixels=fitted.image, drawn=drawn, texts=texts)

    def captions(self, index: int) -> Captions:
        """Read the captions of sample `index` only. Raises SampleError if it cannot be used."""
        if self.latents:
            return captions_of_entry(_stored(self.latents, latents_key(self.data, index)))
        annotation = self.data.annotation(index)
        return Captions(annotation.caption, annotation.captions)


def latents_key(data: DataSet, index: int) -> bytes:
    """Return a sample's key in the latents' cache.

    Another photo under the same name has another key.
    """
    return key_of(*filter(None, (data.key(index), data.photo_digest(index))))


def fault_entry(error: UserError) -> Entry:
    """Pack the error of an unusable sample, so that it is not tried again at every start."""
    line = f"{error} (known from trainer.cache_dir; after repairing the file, remove the cache)"
    return {"fault": np.frombuffer(line.encode(), np.uint8)}


def _stored(store: Store, key: bytes) -> Entry:
    entry = store.read(key)
    if "fault" in entry:
        raise SampleError(entry["fault"].tobytes().decode())
    return entry


MOST_EMPTY = 100  # batches without a usable sample, one after another: then the data set is gone, not a sample
LAST_STEP_SECONDS = 60  # how long a reading process lives on after SIGTERM


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
        try:
            return self.read(index)
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


class SkippedSampleWarning(UserWarning):
    """A sample turned out to be unusable when its step came, so its batch is smaller."""


class Encoder:
    """Runs the frozen networks that caches do not replace.

    Results are rounded as cached ones are.

    known           embeddings known beforehand, such as those of class names
    drops_captions  whether `EncodedSample.without_caption` will be called
    """

    def __init__(self, base: Base, settings: ConditionSettings, known: Mapping[TextKey, Tensor], drops_captions: bool):
        self.base, self.settings, self.known, self.drops_captions = base, settings, known, drops_captions

    def __call__(self, reads: Sequence[ReadSample]) -> list[EncodedSample]:
        texts = [read.captions.texts(self.base, self.settings) for read in reads]
        known = dict(self.known)
        for read, wanted in zip(reads, texts, strict=True):
            known |= texts_of_entry(wanted, read.texts)
        needed = (wanted if self.drops_captions else wanted.keys for wanted in texts)
        add_embeddings(known, (key for keys in needed for key in keys), self.base)
        with_std = self.settings.vae_posterior == "sample"
        return [
            (
                encode_latents(read.pixels, read.drawn, self.base, with_std)
                if read.latents is None
                else latents_of_entry(read.latents)
            ).sample(wanted, known)
            for read, wanted in zip(reads, texts, strict=True)
        ]


class TrainingSet:
    """The encoded samples of a data set of any size.

    counts   tokens and size of every sample
    skips    True: an unusable sample makes its batch smaller, with a warning; False: it ends the run
    workers  number of processes that read ahead
    """

    def __init__(self, reader: Reader, encode: Encoder, counts: TokenCounts, skips: bool, workers: int):
        self.reader, self.encode, self.counts, self.skips, self.workers = reader, encode, counts, skips, workers

    def __len__(self) -> int:
        return len(self.counts.text)

    def __getitem__(self, index: int) -> EncodedSample:
        return self.encode([self.reader(index)])[0]

    def key(self, index: int) -> str:
        """Return the name of a sample in its data set."""
        return self.reader.data.key(index)

    @property
    def lengths(self) -> np.ndarray:
        """Text, image and condition tokens of each sample, int64 [n, 3]."""
        return np.stack([self.counts.text, self.counts.image, self.counts.condition], axis=1)

    def sampler(
        self, kind: str, batch_size: int, seed: int = 0, process: Process = ALONE, accumulation: int = 1
    ) -> BatchSampler:
        """Order the samples for training; `kind` is trainer.sampler of the config."""
        counts = self.counts
        buckets = np.where(counts.usable, counts.buckets, LEFT_OUT)
        if kind == "published":
            lengths = np.stack([counts.text_uncut, counts.condition], axis=1)
            return PublishedBatches(lengths, batch_size, seed, process, buckets, accumulation)
        lengths = np.stack([counts.text, counts.condition], axis=1)
        return LengthBatches(lengths, batch_size, seed, process, buckets, accumulation)

    def batches(self, sampler: BatchSampler) -> Iterator[Batch]:
        """Yield batches from the sampler's place on, endlessly.

        Reading runs ahead of training, but the sampler counts the batches yielded here, so a resumed run
        continues with the batch after the last one used.

        Raises UserError for a sample that cannot be used unless `skips`, after MOST_EMPTY empty batches in a row, and
        for a damaged cache.
        """
        stand_in, n_empty = None, 0
        for reads in read_ahead(self.reader, sampler.ahead(), self.workers):
            sampler.advance()
            places = [place for place, read in enumerate(reads) if is_usable(read, self.skips, "its batch")]
            if places:
                usable = [reads[place] for place in places]
                stand_in, n_empty = usable[0], 0
                yield Batch(places, [r.index for r in usable], [r.key for r in usable], self.encode(usable))
                continue
            n_empty += 1
            if n_empty == MOST_EMPTY:
                raise SampleError(f"{reads[0]}; {n_empty} batches in a row have no usable sample; repair the data set")
            stand_in = stand_in or self._first_usable()
            yield Batch([0], [stand_in.index], [stand_in.key], self.encode([stand_in]), empty=True)

    def _first_usable(self) -> ReadSample:
        """Read the first sample that can be used. Raises SampleError if MOST_EMPTY before it cannot."""
        n_unusable = 0
        for index in np.flatnonzero(self.counts.usable).tolist():
            try:
                return self.reader(index)
            except SampleError:
                n_unusable += 1
            except KeyError:  # not planned, so in no cache
                continue
            if n_unusable == MOST_EMPTY:
                break
        raise SampleError(f"none of the first {max(1, n_unusable)} samples can be used; repair the data set")


def is_usable(read: object | UserError, skips: bool, left_out_of: str) -> bool:
    """Return True for a sample, and False with a warning for a UserError.

    Raise it if not `skips`, or for a cache.
    """
    if not isinstance(read, UserError):
        return True
    if isinstance(read, CacheError) or not skips:
        raise read
    warnings.warn(f"left out of {left_out_of}: {read}", SkippedSampleWarning, stacklevel=3)
    return False
