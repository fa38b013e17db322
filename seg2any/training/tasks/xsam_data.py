"""Order worded images for training: every image is asked in several ways, and a batch in one."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from seg2any.data.sampler import LengthBatches, PublishedBatches
from seg2any.data.words import Worded, Words
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training.batches import MOST_EMPTY, SkippedSampleWarning, is_usable
from seg2any.training.task import Batch
from seg2any.training.tasks.xsam_writing import offers


@dataclass(frozen=True)
class Picture:
    """One sample: an image, the way in which it is asked, and its number of image tokens."""

    worded: Worded
    kind: str
    tokens: int

    @property
    def lengths(self) -> tuple[int]:
        return (self.tokens,)


class WordSet:
    """The samples of a data set: image `i` asked in way `k` is number i * ways + k.

    mix     how often an image is asked in each way in an epoch
    tokens  of an image
    skips   True: an unreadable image makes its batch smaller, with a warning; False: it ends the run
    """

    def __init__(self, words: Words, mix: Mapping[str, int], tokens: int, skips: bool):
        self.words, self.tokens, self.skips = words, tokens, skips
        self.ways = [kind for kind, count in mix.items() for _ in range(count)]

    def __len__(self) -> int:
        return len(self.words) * len(self.ways)

    def __getitem__(self, number: int) -> Picture:
        index, way = divmod(number, len(self.ways))
        return Picture(self.words[index], self.ways[way], self.tokens)

    def key(self, number: int) -> str:
        """Name a sample for messages."""
        index, way = divmod(number, len(self.ways))
        return f"{self.words.key(index)} ({self.ways[way]})"

    def sampler(self, kind: str, batch_size: int, seed: int, process: Process, accumulation: int) -> LengthBatches:
        """Order the samples so that those of one step are asked in one way."""
        if kind == "published":
            raise UserError(f"trainer.sampler: {PublishedBatches.__name__} orders by lengths of Seg2Any; set length")
        numbers = np.arange(len(self))
        kinds = sorted({*self.ways})
        buckets = np.array([kinds.index(way) for way in self.ways])[numbers % len(self.ways)]
        return LengthBatches(np.zeros((len(self), 2), int), batch_size, seed, process, buckets, accumulation)

    def batches(self, sampler: LengthBatches) -> Generator[Batch]:
        """Yield batches from the sampler's place on, endlessly.

        An image that cannot be asked in the way of its batch is left out of it. Raises UserError for an image that
        cannot be read unless `skips`, and for MOST_EMPTY batches in a row without any.
        """
        stand_ins: dict[str, Batch] = {}
        n_empty = 0
        for numbers in sampler.ahead():
            sampler.advance()
            found = {place: one for place, number in enumerate(numbers) if (one := self.usable(number))}
            if found:
                n_empty, kept = 0, [numbers[place] for place in found]
                batch = Batch(list(found), kept, [self.key(number) for number in kept], list(found.values()))
                stand_ins.setdefault(batch.samples[0].kind, batch)
                yield batch
                continue
            n_empty += 1
            kind = self.ways[numbers[0] % len(self.ways)]
            if n_empty == MOST_EMPTY:
                raise UserError(
                    f"data set: {n_empty} batches in a row have no image for {kind}; leave it out of xsam.mix"
                )
            yield self._stand_in(kind, stand_ins)

    def usable(self, number: int) -> Picture | None:
        """Read a sample; None, with a warning where it is damaged, if it cannot be asked in its way."""
        try:
            picture = self[number]
        except UserError as error:
            is_usable(error, self.skips, "its batch")
            return None
        return picture if offers(picture.worded, picture.kind) else None

    def _stand_in(self, kind: str, earlier: Mapping[str, Batch]) -> Batch:
        """Return one sample that keeps other processes company and does not count."""
        if kind in earlier:
            one = earlier[kind]
            return Batch([0], one.indices[:1], one.keys[:1], one.samples[:1], empty=True)
        for number in range(self.ways.index(kind), len(self), len(self.ways)):
            if picture := self.usable(number):
                warnings.warn(f"a batch has no image for {kind}", SkippedSampleWarning, stacklevel=2)
                return Batch([0], [number], [self.key(number)], [picture], empty=True)
        raise UserError(f"data set: no image can be asked for {kind}; leave it out of xsam.mix")
