"""Store arrays by key: on the disk for any number of processes and runs, or in memory.

A store on the disk is a folder of shards, each a safetensors file with keys, the ends and CRC-32 of the entries, and
the entries one after another. A shard is written under another name, synced and renamed, so it is complete or absent;
nothing is ever changed in place. Writers never wait for each other: if two store the same key, the older shard counts.
A shard that the disk has altered is never used but removed.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, remove_stale

Entry = dict[str, np.ndarray]
KEY_BYTES = 16
SHARD_BYTES = 256 << 20
SHARD_SECONDS = 120.0  # the most work that a kill loses, and how soon other processes see progress
OPEN_SHARDS = 32


class DamagedShardWarning(UserWarning):
    """A file of a cache could not be read and was removed; its entries are computed again."""


class CacheError(UserError):
    """A cache cannot be written, or was altered during the run.

    Not specific to one sample, so never skipped.
    """


def key_of(*parts: object) -> bytes:
    """Digest `parts`, anything json can write, to 16 bytes."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:KEY_BYTES]


class Store(Protocol):
    """Entries by keys of 16 bytes. `is_shared`: other processes see what this one adds."""

    is_shared: bool

    def missing(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the positions in `keys` that have no entry, int64, ascending."""

    def read(self, key: bytes) -> Entry:
        """Return the entry of `key`. Raises KeyError if there is none."""

    def is_in_memory(self, key: bytes) -> bool:
        """Tell whether this process can read the entry of `key` without a file."""

    def add(self, key: bytes, entry: Entry) -> None:
        """Add an entry; this process can read it at once, others after the next `flush`."""

    def flush(self) -> None:
        """Write added entries."""

    def refresh(self) -> None:
        """Find entries that other processes have added."""


class MemoryStore:
    """Entries in the memory of this process, gone when it ends."""

    is_shared = False

    def __init__(self):
        self._entries: dict[bytes, Entry] = {}

    def missing(self, keys: Sequence[bytes]) -> np.ndarray:
        return np.array([at for at, key in enumerate(keys) if key not in self._entries], np.int64)

    def read(self, key: bytes) -> Entry:
        return self._entries[key]

    def is_in_memory(self, key: bytes) -> bool:
        return key in self._entries

    def add(self, key: bytes, entry: Entry) -> None:
        self._entries[key] = entry

    def flush(self) -> None:
        pass

    def refresh(self) -> None:
        pass


class ShardStore:
    """Entries in the shards of `folder`, which need not exist yet.

    Can be sent to other processes.
    """

    is_shared = True

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._shards: list[str] = []
        self._keys = np.zeros(0, f"S{KEY_BYTES}")  # sorted
        self._where = np.zeros((0, 4), np.int64)  # of each key: shard, first byte, end, CRC-32
        self._open: dict[int, object] = {}
        self._pending: dict[bytes, bytes] = {}  # added, but not written yet
        self._pending_bytes, self._flushed_at = 0, time.monotonic()
        remove_stale(self.folder)
        self.refresh()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}, "_pending": {}, "_pending_bytes": 0}

    def missing(self, keys: Sequence[bytes]) -> np.ndarray:
        absent = np.flatnonzero(self._find(keys) < 0)
        return absent[[keys[at] not in self._pending for at in absent]] if self._pending else absent

    def is_in_memory(self, key: bytes) -> bool:
        return key in self._pending

    def _find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Find the position of each key in the index, -1 for a missing key."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        wanted = np.array(keys, self._keys.dtype)
        at = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, at, -1)

    def read(self, key: bytes) -> Entry:
        """Read the entry of `key`. Raises KeyError if there is none, CacheError if it is damaged."""
        (at,) = self._find([key])
        if at < 0:
            return load(self._pending[key])
        shard, start, end, crc = self._where[at].tolist()
        path = self.folder / self._shards[shard]
        try:
            blob = self._blobs(shard)[start:end].tobytes()
        except (OSError, SafetensorError) as error:
            raise CacheError(f"{path}: {_reason(error)}; start again, its entries are computed again") from None
        if zlib.crc32(blob) != crc:
            raise CacheError(f"{path}: {_removed(path)}; start again, its entries are computed again")
        return load(blob)

    def _blobs(self, shard: int):
        """Map the bytes of a shard without reading them; the files used last stay open."""
        blobs = self._open.pop(shard, None)
        if blobs is None:
            blobs = safe_open(self.folder / self._shards[shard], framework="np").get_slice("entries")
        self._open[shard] = blobs
        if len(self._open) > OPEN_SHARDS:
            del self._open[next(iter(self._open))]
        return blobs

    def add(self, key: bytes, entry: Entry) -> None:
        """Keep an entry in memory until a shard is large or old enough to be written."""
        # `save` writes the memory of an array as it lies, whatever its strides say.
        blob = save({name: np.ascontiguousarray(array) for name, array in entry.items()})
        self._pending[key] = blob
        self._pending_bytes += len(blob)
        if self._pending_bytes >= SHARD_BYTES or time.monotonic() - self._flushed_at > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the added entries as one shard. Raises CacheError if that fails."""
        if self._pending:
            keys, blobs = self._pending.keys(), self._pending.values()
            content = {
                "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                "ends": np.cumsum([len(blob) for blob in blobs], dtype=np.int64),
                "sums": np.array([zlib.crc32(blob) for blob in blobs], np.uint32),
                "entries": np.frombuffer(b"".join(blobs), np.uint8),
            }
            # Names ascend with time: of two entries with one key the older counts, in every later run as well.
            path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.safetensors"
            try:
                with atomic_write(path) as temporary:
                    save_file(content, temporary)
            except (OSError, SafetensorError) as error:
                raise CacheError(
                    f"trainer.cache_dir: {self.folder} cannot be written ({_reason(error)}); make room or choose "
                    "another folder, then start again: shards written before are kept"
                ) from None
            self._pending, self._pending_bytes = {}, 0
            self.refresh()
        self._flushed_at = time.monotonic()

    def refresh(self) -> None:
        """Index new shards of the folder, whichever process wrote them, and remove damaged ones."""
        known = set(self._shards)
        keys, where = [self._keys], [self._where]
        for path in sorted(self.folder.glob("[0-9]*.safetensors")):
            if path.name in known or (index := _read_index(path)) is None:
                continue
            _, ends, sums = index
            starts = np.concatenate([[0], ends[:-1]])
            keys.append(index[0])
            where.append(np.stack([np.full(len(ends), len(self._shards)), starts, ends, sums], axis=1))
            self._shards.append(path.name)
        if len(keys) > 1:
            shard_rank = np.argsort(np.argsort(self._shards))  # others' older shards may be found later
            keys, where = np.concatenate(keys), np.concatenate(where)
            order = np.lexsort((shard_rank[where[:, 0]], keys))
            first = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
            self._keys, self._where = keys[order][first], where[order][first]


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Read keys, ends and CRC-32 of a shard's entries.

    Remove a damaged shard with a warning and return None.
    """
    try:
        with safe_open(path, framework="np") as file:
            keys, ends, sums = map(file.get_tensor, ("keys", "ends", "sums"))
            sizes = file.get_slice("entries").get_shape()
            if 0 < len(keys) == len(ends) == len(sums) and sizes == [int(ends[-1])]:
                return np.ascontiguousarray(keys).view(f"S{KEY_BYTES}")[:, 0], ends, sums.astype(np.int64)
    except FileNotFoundError:
        return None  # another process has found the damage first
    except SafetensorError:
        pass
    warnings.warn(f"{path}: {_removed(path)}; its entries are computed again", DamagedShardWarning, stacklevel=3)
    return None


def _removed(path: Path) -> str:
    """Remove a damaged shard; return words about it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"damaged, and cannot be removed ({_reason(error)})"
    return "damaged and removed"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
