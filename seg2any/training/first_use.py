"""Encode the samples of a run when a step reads them first, and keep them in the caches.

With trainer.cache=plan, step 1 begins as soon as its own batch is encoded. Before each step, this process encodes those
samples of its batch that no cache holds, one after another, between the steps and on the device of the training: the
two never compete for it, and an encoded sample does not depend on the batch or on the moment. So a resumed run, and one
with another number of processes, reads the same numbers, whatever a kill has lost of a cache. Reading processes decode
files ahead; of samples that they find in a cache, they read only the entry.

Processes share a cache on the disk. Each looks for entries of the others before it encodes a sample. An epoch has every
sample once, so two processes of a run rarely encode the same one at the same time; then both entries are equal, each in
a file of its own, and the older is read (`seg2any.training.store`).

The encoders are freed when all that this process will read is encoded. They take memory beside the training until then,
so a run that has no room for both encodes everything before step 1 (`seg2any.training.memory.has_room_for_encoders`),
as it does with trainer.cache=all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from tqdm.auto import tqdm

from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.dataset import SampleError
from seg2any.system.errors import UserError
from seg2any.training.reading import Reader, ReadSample, fault_entry, latents_key, texts_key
from seg2any.training.samples import add_embeddings, encode_latents, latents_entry, texts_entry
from seg2any.training.store import CacheError

CHECK_SECONDS = 300.0  # between two looks for entries of samples that other processes have encoded


class FirstUse:
    """Completes samples that were read, and the caches with them.

    reader    has the caches
    names     embeddings that are not stored with samples
    planned   the samples that this process will read
    finished  called once, when all of them are encoded
    is_quiet  True: another process shows the progress bar
    """

    def __init__(
        self,
        reader: Reader,
        base: Base,
        names: Mapping[TextKey, Tensor],
        planned: Sequence[int],
        finished: Callable[[], None],
        is_quiet: bool,
    ):
        self.reader, self.base, self.names, self.finished, self.is_quiet = reader, base, names, finished, is_quiet
        self.waiting = {int(planned[at]) for at in reader.missing(planned)}
        self.total, self._bar, self._checked = len(self.waiting), None, time.monotonic()

    def __call__(
        self, indices: Sequence[int], reads: Sequence[ReadSample | UserError], skips: bool
    ) -> list[ReadSample | UserError]:
        """Return `reads` with the entries that were missing, now encoded and added to the caches.

        With `skips`, a sample that cannot be read gets an entry, too, so that no later run tries it again.

        Raises CacheError if a cache cannot be written.
        """
        complete = []
        for index, read in zip(indices, reads, strict=True):
            if not isinstance(read, UserError):
                read = self._complete(read)
            elif skips and not isinstance(read, CacheError):
                self._add_fault(index, read)
            complete.append(read)
            self._count(index)
        if self.waiting and time.monotonic() - self._checked > CHECK_SECONDS:
            self._look_for_others()
        return complete

    def close(self) -> None:
        """Write what was encoded last, and close the progress bar. Raises CacheError."""
        for store in (self.reader.latents, self.reader.texts):
            if store:
                store.flush()
        if self._bar is not None:
            self._bar.close()

    def _complete(self, read: ReadSample) -> ReadSample | SampleError:
        """Add the entries that `read` lacks, from the caches or newly encoded."""
        reader, settings = self.reader, self.reader.preparation.settings
        lacks_latents = reader.latents is not None and read.latents is None
        lacks_texts = reader.texts is not None and read.texts is None
        if not lacks_latents and not lacks_texts:
            return read
        try:
            latents, texts = reader.kept(read.index)  # perhaps added since the sample was read
        except SampleError as error:
            return error
        if lacks_latents and latents is None:
            with_std = settings.vae_posterior == "sample"
            encoded = encode_latents(read.pixels, read.drawn, self.base, with_std)
            latents = latents_entry(encoded, read.captions, with_std)
            reader.latents.add(latents_key(reader.data, read.index), latents)
        if lacks_texts and texts is None:
            wanted, known = read.captions.texts(self.base, settings), dict(self.names)
            add_embeddings(known, wanted, self.base)
            texts = texts_entry(wanted, known, self.names)
            reader.texts.add(texts_key(reader.data, read.index), texts)
        if latents is not None:
            read = replace(read, latents=latents, pixels=None, drawn=None)
        return replace(read, texts=texts)

    def _add_fault(self, index: int, error: UserError) -> None:
        """Keep the error of an unusable sample, unless a cache has it already."""
        for store, key in ((self.reader.latents, latents_key), (self.reader.texts, texts_key)):
            if store and len(store.missing([key(self.reader.data, index)])):
                store.add(key(self.reader.data, index), fault_entry(error))

    def _count(self, index: int) -> None:
        if index not in self.waiting:
            return
        if self._bar is None:
            quiet = self.is_quiet
            self._bar = tqdm(
                total=self.total, desc="encode beside the training", unit="img", leave=False, disable=quiet
            )
        self.waiting.remove(index)
        self._bar.update(self.total - len(self.waiting) - self._bar.n)
        self._finish()

    def _look_for_others(self) -> None:
        """Stop waiting for samples that other processes have encoded."""
        waiting = sorted(self.waiting)
        for store in (self.reader.latents, self.reader.texts):
            if store:
                store.refresh()
        self.waiting = {waiting[at] for at in self.reader.missing(waiting)}
        self._checked = time.monotonic()
        self._finish()

    def _finish(self) -> None:
        if not self.waiting:
            self.close()
            self.finished()
