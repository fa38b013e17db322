"""Cache what frozen networks compute: name caches, and fill them with all processes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.system.errors import UserError
from seg2any.system.processes import PATIENCE, Process, wait_for_others
from seg2any.training.reading import Preparation, Reader, fault_entry, read_ahead
from seg2any.training.samples import Captions, add_embeddings, encode_latents, latents_entry, texts_entry
from seg2any.training.store import Entry, MemoryStore, ShardStore, Store

FORMAT = 3  # raise it when entries or what they mean change
KNOWN_BYTES = 1 << 30  # embeddings kept while filling a cache, so that repeated captions are encoded once

# Positions of missing entries -> (position, entry), in any order.
Make = Callable[[Sequence[int]], Iterable[tuple[int, Entry]]]


def complete(
    store: Store, keys: Sequence[bytes], make: Make, what: str, process: Process, patience: float = PATIENCE
) -> None:
    """Fill `store` with an entry for each of `keys`, together with the run's other processes.

    Each process makes the missing entries of its share. If the others, which may belong to another node with a folder
    of its own or to a run that was killed, make no progress for `patience` seconds, this one makes theirs as well.
    """

    def left() -> int:
        store.refresh()
        return len(store.missing(keys))

    def add(positions: list[int]) -> None:
        _add(store, keys, positions, make, what, is_quiet=not process.is_first)

    own = set(process.consecutive_share(len(keys))) if store.is_shared else range(len(keys))
    store.refresh()
    add([at for at in store.missing(keys).tolist() if at in own])
    wait_for_others(left, lambda: add(store.missing(keys).tolist()), patience)


def _add(store: Store, keys: Sequence[bytes], positions: list[int], make: Make, what: str, is_quiet: bool) -> None:
    if not positions:
        return
    try:
        with tqdm(total=len(positions), desc=what, unit="", disable=is_quiet) as bar:
            for at, entry in make(positions):
                store.add(keys[at], entry)
                bar.update()
    finally:
        store.flush()  # keep finished entries even if the loop was interrupted


def of_some(indices: Sequence[int], make: Make) -> Make:
    """Let `make`, which makes entries of samples by their number, make those of `indices` by position."""

    def made(positions: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        position = {indices[at]: at for at in positions}
        for index, entry in make(list(position)):
            yield position[index], entry

    return made


def open_store(cache_dir: str | None, kind: str, fingerprint: str) -> Store:
    """Open the cache named by `fingerprint` in `cache_dir`.

    Without a `cache_dir`, one in memory.
    """
    return ShardStore(Path(cache_dir) / f"{kind}-{fingerprint[:16]}") if cache_dir else MemoryStore()


def check_space(store: Store, n_bytes: int, what: str) -> str:
    """Describe the size of a cache in one line. Raises UserError if the disk has no room for it."""
    line = f"cache of {what}: about {n_bytes / 1e9:.3g} GB"
    if not isinstance(store, ShardStore):
        return f"{line} in memory; trainer.cache_dir would keep it on the disk"
    folder = next(path for path in (store.folder, *store.folder.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise UserError(
            f"trainer.cache_dir: {line} in {store.folder}, but only {free / 1e9:.3g} GB are free there; choose another "
            "disk, or cache less with trainer.cache_latents and trainer.cache_text"
        )
    return f"{line} in {store.folder}"


def make_latents(reader: Reader, base: Base, with_std: bool, skips: bool, workers: int) -> Make:
    """Return what makes entries of the latents' cache; `workers` processes read the samples."""

    def make(indices: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        for index, (read,) in zip(indices, read_ahead(reader, [[i] for i in indices], workers), strict=True):
            if isinstance(read, UserError):
                yield index, _fault(read, skips)
                continue
            latents = encode_latents(read.pixels, read.drawn, base, with_std)
            yield index, latents_entry(latents, read.captions, with_std)

    return make


def make_texts(
    reader: Reader, base: Base, elsewhere: dict[TextKey, Tensor], batch_size: int, skips: bool, workers: int
) -> Make:
    """Return what makes entries of the texts' cache.

    Embeddings in `elsewhere` are not stored with samples.
    """
    settings = reader.preparation.settings

    def make(indices: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        known = dict(elsewhere)
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for batch, reads in zip(batches, read_ahead(reader.captions, batches, workers), strict=True):
            wanted = [
                read.texts(base, settings) if isinstance(read, Captions) else _fault(read, skips) for read in reads
            ]
            if sum(embeds.nbytes for embeds in known.values()) > KNOWN_BYTES:
                known = dict(elsewhere)
            add_embeddings(known, [key for texts in wanted if not isinstance(texts, dict) for key in texts], base)
            for index, texts in zip(batch, wanted, strict=True):
                yield index, texts if isinstance(texts, dict) else texts_entry(texts, known, elsewhere)

    return make


def _fault(error: UserError, skips: bool) -> Entry:
    if not skips:
        raise error
    return fault_entry(error)


def latents_fingerprint(data: str, preparation: Preparation, base: Base) -> str:
    """Digest all that latents and drawn regions depend on; `data` is the data set's fingerprint."""
    settings = preparation.settings
    drawn = ("is_use_cond_token", "is_filter_cond_token", "cond_scale_factor", "region_assignment", "vae_posterior")
    soft = settings.attention_mask_method == "place"
    parts = [preparation.resolution, preparation.aspect, *(getattr(settings, name) for name in drawn), soft]
    plain = settings.is_plain and "regions and coverage drawn"
    digest = _digest(data, parts, plain, *base.geometry.latent_scaling)
    return _extended(digest, base.identity("images"))


def texts_fingerprint(data: str, settings: ConditionSettings, base: Base) -> str:
    """Digest all that embeddings depend on; `data`, the data set's fingerprint, covers captions."""
    lengths = [settings.max_sequence_length, settings.regional_max_sequence_length]
    digest = _digest(data, lengths, settings.is_plain)
    return _extended(digest, base.identity("text"))


def _digest(*parts: object) -> hashlib._Hash:
    return hashlib.sha256(repr((FORMAT, *parts)).encode())


def _extended(digest: hashlib._Hash, pieces: Iterable[bytes]) -> str:
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
