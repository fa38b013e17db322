"""Check every image of a folder once and cache digest, size and error.

Reading the 118,000 pictures of COCO-Stuff takes minutes, so results are kept in a parquet file, and a picture is read
again only if its number of bytes or its time of change differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from seg2any.data.dataset import SampleError
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.weights import file_digest

FORMAT = 2  # raise it when the columns, their meaning or what is checked change
SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "digest": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "fault": pa.string(),  # the error, under the name that caches on disk have
    }
)


@dataclass(frozen=True)
class Checked:
    """A checked picture.

    digest  sha256 hex digest of its bytes; "" if they cannot be read
    size    (H, W); (0, 0) with an error
    error   one line that says why the picture cannot be used, or None
    """

    digest: str
    size: tuple[int, int]
    error: str | None


def check_pictures(
    paths: Sequence[Path], check: Callable[[Path], tuple[int, int]], rule: str, kept_in: Path | None
) -> list[Checked]:
    """Return one result per path; file names must differ.

    check     returns (H, W), or raises SampleError for a picture that cannot be used
    rule      describes what `check` checks; results of another rule are not reused
    kept_in   parquet file with the results of earlier calls; None: nothing is kept
    """
    known = _read(kept_in, rule) if kept_in else {}
    stamps = [_stamp(path) for path in paths]
    new = [n for n, stamp in enumerate(stamps) if stamp not in known]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda n: _check(paths[n], check), new)
        bar = tqdm(found, f"check {paths[0].parent if paths else ''}", len(new), unit="file", disable=len(new) < 1000)
        known |= {stamps[n]: result for n, result in zip(new, bar, strict=True)}
    if kept_in and new:
        # Without what could not be read at all: it may become readable without being changed.
        _write(kept_in, rule, [(stamp, known[stamp]) for stamp in stamps if known[stamp].digest])
    return [known[stamp] for stamp in stamps]


@contextmanager
def writing_cache(root: Path) -> Iterator[None]:
    """Turn an OSError in the block into a UserError about `cache_root`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"cache_root {root}: cannot be written ({reason}); name another folder, or null") from None


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return name, number of bytes and time of change; zeros for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return path.name, 0, 0
    return path.name, status.st_size, status.st_mtime_ns


def _check(path: Path, check: Callable[[Path], tuple[int, int]]) -> Checked:
    try:
        digest = file_digest(path)
    except OSError as error:
        return Checked("", (0, 0), f"{path}: cannot be read ({error.strerror}); get it again, or allow reading it")
    try:
        return Checked(digest, check(path), None)
    except SampleError as error:
        return Checked(digest, (0, 0), str(error))


def _read(path: Path, rule: str) -> dict[tuple[str, int, int], Checked]:
    """Read the results of earlier calls; empty without a readable file of this rule."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return {}
    if (table.schema.metadata or {}).get(b"rule") != _versioned(rule):
        return {}
    try:
        rows = zip(*(table[column].to_pylist() for column in SCHEMA.names), strict=True)
    except (KeyError, UnicodeDecodeError):  # texts are decoded only here
        return {}
    return {
        (name, size, mtime): Checked(digest, (height, width), error)
        for name, size, mtime, digest, height, width, error in rows
    }


def _write(path: Path, rule: str, rows: list[tuple[tuple[str, int, int], Checked]]) -> None:
    values = [(*stamp, one.digest, *one.size, one.error) for stamp, one in rows]
    columns = [list(column) for column in zip(*values, strict=True)] or [[]] * len(SCHEMA)
    with writing_cache(path.parent), atomic_write(path) as temporary:
        pq.write_table(pa.table(columns, SCHEMA.with_metadata({"rule": _versioned(rule)})), temporary)


def _versioned(rule: str) -> bytes:
    return f"{rule}, format {FORMAT}".encode()
