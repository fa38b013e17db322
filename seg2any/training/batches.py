"""Read the samples of each step, encode what no cache holds, and hand out batches."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.dataset import SampleError
from seg2any.data.sampler import LEFT_OUT, BatchSampler, LengthBatches, PublishedBatches
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process
from seg2any.training.first_use import FirstUse
from seg2any.training.reading import Reader, ReadSample, read_ahead, result_or_error
from seg2any.training.samples import EncodedSample, add_embeddings, encode_latents, latents_of_entry, texts_of_entry
from seg2any.training.store import CacheError
from seg2any.training.task import Batch
from seg2any.training.token_counts import TokenCounts

MOST_EMPTY = 100  # batches without a usable sample, one after another: then the data set is gone, not a sample


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
            known |= texts_of_entry(wanted, read.texts or {})
        needed = (wanted if self.drops_captions else wanted.keys for wanted in texts)
        add_embeddings(known, (key for keys in needed for key in keys), self.base)
        with_std = self.settings.vae_posterior == "sample"
        latents = (
            encode_latents(read.pixels, read.drawn, self.base, with_std)
            if read.latents is None
            else latents_of_entry(read.latents)
            for read in reads
        )
        found = [one.sample(wanted, known) for one, wanted in zip(latents, texts, strict=True)]
        return [replace(sample, captions=read.captions) for sample, read in zip(found, reads, strict=True)]


class TrainingSet:
    """The encoded samples of a data set of any size.

    counts   tokens and size of every sample
    skips    True: an unusable sample makes its batch smaller, with a warning; False: it ends the run
    workers  number of processes that read ahead
    fill     completes the caches in the order of the steps; None if they are complete, or if there are none
    """

    def __init__(self, reader: Reader, encode: Encoder, counts: TokenCounts, skips: bool, workers: int):
        self.reader, self.encode, self.counts, self.skips, self.workers = reader, encode, counts, skips, workers
        self.fill: FirstUse | None = None

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

    def batches(self, sampler: BatchSampler) -> Generator[Batch]:
        """Yield batches from the sampler's place on, endlessly; close the generator to complete the caches' files.

        Reading runs ahead of training, but the sampler counts the batches yielded here, so a resumed run
        continues with the batch after the last one used.

        Raises UserError for a sample that cannot be used unless `skips`, after MOST_EMPTY empty batches in a row, and
        for a cache that is damaged or cannot be written.
        """
        try:
            yield from self._batches(sampler)
        finally:
            if self.fill:
                self.fill.close()

    def _batches(self, sampler: BatchSampler) -> Iterator[Batch]:
        stand_in, n_empty = None, 0
        for indices, reads in self._reads(sampler.ahead()):
            sampler.advance()
            reads = self._filled(indices, reads)
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

    def _reads(self, order: Iterable[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[ReadSample | UserError]]]:
        """Yield the indices of each batch with what was read of them.

        Other processes read ahead what is not in the memory of this one.
        """
        begun: deque[tuple[Sequence[int], list[bool]]] = deque()

        def to_read() -> Iterator[list[int]]:
            for indices in order:
                here = [self.reader.is_in_memory(index) for index in indices]
                begun.append((indices, here))
                yield [index for index, is_here in zip(indices, here, strict=True) if not is_here]

        for reads in read_ahead(self.reader, to_read(), self.workers):
            (indices, here), found = begun.popleft(), iter(reads)
            in_order = zip(indices, here, strict=True)
            yield indices, [result_or_error(self.reader, at) if is_here else next(found) for at, is_here in in_order]

    def _filled(self, indices: Sequence[int], reads: list[ReadSample | UserError]) -> list[ReadSample | UserError]:
        return self.fill(indices, reads, self.skips) if self.fill else reads

    def _first_usable(self) -> ReadSample:
        """Read the first sample that can be used. Raises SampleError if MOST_EMPTY before it cannot."""
        n_unusable = 0
        for index in np.flatnonzero(self.counts.usable).tolist():
            if len(self.reader.missing([index])) and not (self.fill and self.fill.waiting):
                continue  # in no cache, and nothing is left to encode it
            (read,) = self._filled([index], [result_or_error(self.reader, index)])
            if not isinstance(read, SampleError):
                return read
            n_unusable += 1
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
