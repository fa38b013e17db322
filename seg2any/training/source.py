"""Training samples from a data set of any size: read ahead, encoded when their step comes or read from caches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.text import TextKey
from seg2any.data.dataset import SampleError
from seg2any.data.sampler import LEFT_OUT, BatchSampler, LengthBatches, PublishedBatches
from seg2any.diffusion.prepare import Encoders
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process
from seg2any.training.counts import TokenCounts
from seg2any.training.encoded import EncodedSample, add_embeddings, encode_latents, latents_of_entry, texts_of_entry
from seg2any.training.reader import Reader, ReadSample, read_ahead
from seg2any.training.store import CacheError


class SkippedSampleWarning(UserWarning):
    """A sample turned out to be unusable when its step came; its batch is smaller."""


@dataclass(frozen=True)
class Batch:
    """Samples of one step on this rank: their places in the batch (all, unless some were left out), their numbers and
    keys in the data set, and what the networks say."""

    places: list[int]
    indices: list[int]
    keys: list[str]
    samples: list[EncodedSample]


class LiveEncoder:
    """Runs whatever of the networks the caches do not replace. Embeddings and latents are rounded as stored ones are.

    known           embeddings to keep at hand, such as those of class names
    drops_captions  whether `EncodedSample.without_caption` will be called
    """

    def __init__(
        self, encoders: Encoders, settings: ConditionSettings, known: Mapping[TextKey, Tensor], drops_captions: bool
    ):
        self.encoders, self.settings, self.known, self.drops_captions = encoders, settings, known, drops_captions

    def __call__(self, reads: Sequence[ReadSample]) -> list[EncodedSample]:
        texts = [read.captions.texts(self.settings) for read in reads]
        known = dict(self.known)
        for read, wanted in zip(reads, texts, strict=True):
            known |= texts_of_entry(wanted, read.texts)
        needed = (wanted if self.drops_captions else wanted.prompt for wanted in texts)
        add_embeddings(known, (key for keys in needed for key in keys), self.encoders)
        with_std = self.settings.vae_posterior == "sample"
        return [
            (
                encode_latents(read.pixels, read.drawn, self.encoders.vae, with_std)
                if read.latents is None
                else latents_of_entry(read.latents)
            ).sample(wanted, known)
            for read, wanted in zip(reads, texts, strict=True)
        ]


class Source:
    """The samples of a data set, encoded.

    counts   tokens and size of every sample
    skips    whether an unusable sample makes its batch smaller, with a warning, instead of ending the run
    workers  processes that read ahead
    """

    def __init__(self, reader: Reader, encode: LiveEncoder, counts: TokenCounts, skips: bool, workers: int):
        self.reader, self.encode, self.counts, self.skips, self.workers = reader, encode, counts, skips, workers

    def __len__(self) -> int:
        return len(self.counts.text)

    def __getitem__(self, index: int) -> EncodedSample:
        return self.encode([self.reader(index)])[0]

    def key(self, index: int) -> str:
        """Of a sample in its data set."""
        return self.reader.data.key(index)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n, 3]: text, image and condition tokens of each sample."""
        return np.stack([self.counts.text, self.counts.image, self.counts.condition], axis=1)

    def sampler(self, kind: str, batch_size: int, seed: int = 0, process: Process = ALONE) -> BatchSampler:
        """The order of training; `kind` is trainer.sampler of the config."""
        counts = self.counts
        buckets = np.where(counts.usable, counts.buckets, LEFT_OUT)
        if kind == "published":
            lengths = np.stack([counts.text_uncut, counts.condition], axis=1)
            return PublishedBatches(lengths, batch_size, seed, process, buckets)
        lengths = np.stack([counts.text, counts.condition], axis=1)
        return LengthBatches(lengths, batch_size, seed, process, buckets)

    def batches(self, sampler: BatchSampler) -> Iterator[Batch]:
        """The batches from `sampler.position` on, endlessly. Reading runs ahead of training; `sampler.position` does
        not: it is the number of batches handed out here, so a checkpoint resumes with the batch after the last used.

        Raises UserError for a sample that cannot be used, if all of a batch cannot, and for a damaged cache.
        """
        for reads in read_ahead(self.reader, sampler.ahead(), self.workers):
            sampler.position += 1
            places = [place for place, read in enumerate(reads) if is_usable(read, self.skips, "its batch")]
            if not places:
                others = "it is all of its batch" if len(reads) == 1 else "so it is with all of its batch"
                raise SampleError(
                    f"{reads[0]}; {others}, and without one no step can be made: mend it, or drop its row"
                )
            usable = [reads[place] for place in places]
            yield Batch(places, [r.index for r in usable], [r.key for r in usable], self.encode(usable))


def is_usable(read: object | UserError, skips: bool, left_out_of: str) -> bool:
    """Warns of an unusable sample, or raises what is wrong with it unless it `skips`, or if it is a damaged cache."""
    if not isinstance(read, UserError):
        return True
    if isinstance(read, CacheError) or not skips:
        raise read
    warnings.warn(f"left out of {left_out_of}: {read}", SkippedSampleWarning, stacklevel=3)
    return False
