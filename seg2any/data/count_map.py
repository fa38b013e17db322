"""Counting a whole data set: by several processes, on several machines, interrupted and continued.

The rows are cut into parts of PART rows. A part is counted by one process, and its file is complete or absent. Whoever
finds all parts there puts them together; the result does not depend on who counted what, or how often it was begun.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from seg2any.data.bucket_map import SCHEMA, BucketMap, Origin, read_origin, write_tables
from seg2any.data.count_rows import RowCounter
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.system.workers import WorkerPool

PART = 256  # rows: about a second of work
MERGED = 256  # parts that are put together at a time


def with_shard(shard: str, process: Process) -> Process:
    """Return which process this is of all that count one map: `shard` is "i/n", and each shard has process.count.

    Raises UserError for an impossible shard.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, shards = map(int, match.groups()) if match else (0, 0)
    if number >= shards:
        raise UserError(f"--shard {shard}: not a shard; give i/n with i from 0 to n - 1, such as 0/8")
    return Process(number * process.count + process.index, shards * process.count)


def number_of_workers(asked: int | None, process: Process) -> int:
    """Return `asked`, or one worker per core that this process may use, shared by the run's processes on this machine.

    Raises UserError for less than one.
    """
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // process.local_count)
    if asked < 1:
        raise UserError(f"--workers {asked}: too few; give at least 1")
    return asked


@dataclass(frozen=True)
class Parts:
    """The files of a map in the making, beside `path`; those of another origin lie in another folder."""

    path: Path
    origin: Origin

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.path.with_name(f"{self.path.stem}-parts-{self.origin.digest[:12]}")

    @property
    def ranges(self) -> list[range]:
        """The rows of each part."""
        starts = range(0, self.origin.rows, PART)
        return [range(start, min(start + PART, self.origin.rows)) for start in starts]

    def file(self, rows: range) -> Path:
        """Of the part with these rows."""
        return self.folder / f"rows-{rows.start:09d}-{rows.stop:09d}.parquet"

    def missing(self, ranges: Sequence[range]) -> list[range]:
        """Which of `ranges` have no part yet."""
        there = {path.name for path in self.folder.glob("rows-*.parquet")}
        return [rows for rows in ranges if self.file(rows).name not in there]

    def others(self) -> str:
        """What to say about parts of other origin: a shard that was started with other data is missing here."""
        found = sorted(set(self.path.parent.glob(f"{self.path.stem}-parts-*")) - {self.folder})
        return f"; {found[0].name} holds parts of other data or settings, which do not count" if found else ""

    def is_finished(self) -> bool:
        """Whether the map itself is there and whole; a damaged one is to be made again, like a stale one."""
        try:
            if not self.path.is_file() or read_origin(self.path) != self.origin:
                return False
            return len(BucketMap.read(self.path, self.origin)) == self.origin.rows
        except UserError:
            return False

    def write(self, rows: range, counter: RowCounter) -> None:
        """Count a part. Raises UserError for a disk that is full or cannot be written."""
        counted = counter(rows)
        try:
            with self._writing():
                write_tables(self.file(rows), self.origin, [counted])
        except FileNotFoundError:  # another run has finished the map and removed the folder
            if not self.is_finished():
                raise

    def merge(self) -> None:
        """Write the map and remove the parts. Another process may be doing the same."""
        try:
            with self._writing():
                _keep_published(self.path)
                write_tables(self.path, self.origin, self._tables())
        except FileNotFoundError:  # the other one was faster and has removed the parts
            if not self.is_finished():
                raise
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.path.parent.is_dir() and isinstance(error, FileNotFoundError):
                raise  # parts that another process has removed
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); make room, or name another folder "
                "as data.train.params.cache_root, or as trainer.cache_dir for data without one"
            ) from None

    def _tables(self) -> Iterator[pa.Table]:
        ranges = self.ranges
        for first in range(0, len(ranges), MERGED):
            yield pa.concat_tables(map(self._table, ranges[first : first + MERGED])).combine_chunks()

    def _table(self, rows: range) -> pa.Table:
        file = self.file(rows)
        try:
            return pq.read_table(file, columns=SCHEMA.names)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError):
            raise UserError(f"{file}: is damaged; remove it and run the same command again") from None


def count_map(path: Path, counter: RowCounter, process: Process, workers: int, show_progress: bool = True) -> str:
    """Count this process's share of the map `path`, put the map together if nothing is missing, and say what was done.

    workers  processes; 1 counts in this one

    Raises UserError for what the data set refuses, or if a worker was killed.
    """
    parts = Parts(path, counter.origin)
    if parts.is_finished():
        return f"{path}: is up to date, {counter.origin.rows} rows"
    mine = process.share(parts.ranges)
    missing = parts.missing(mine)
    total, left = sum(map(len, mine)), sum(map(len, missing))
    if workers == 1 or len(missing) < 2:
        counted = _in_this_process(parts, counter, missing)
    else:
        counted = _by_workers(parts, counter, missing, workers)
    with tqdm(total=total, initial=total - left, desc="count tokens", unit="img", disable=not show_progress) as bar:
        for rows in counted:
            bar.update(len(rows))
    still = parts.missing(parts.ranges)
    if not still:
        parts.merge()
    elif not parts.is_finished():
        return f"{parts.folder}: {len(still)} of {len(parts.ranges)} parts are left to the other shards{parts.others()}"
    else:  # by another run of the same command
        shutil.rmtree(parts.folder, ignore_errors=True)
    return f"{path}: {counter.origin.rows} rows"


def _in_this_process(parts: Parts, counter: RowCounter, missing: Sequence[range]) -> Iterator[range]:
    for rows in missing:
        parts.write(rows, counter)
        yield rows


def _by_workers(parts: Parts, counter: RowCounter, missing: Sequence[range], workers: int) -> Iterator[range]:
    modules = (__name__, type(counter.tokenizer).__module__, type(counter.data).__module__)
    with WorkerPool(min(workers, len(missing)), (parts, counter), _use_one_thread, modules) as pool:
        for rows, _ in pool.results(_count_part, missing):
            yield rows


def _count_part(job: tuple[Parts, RowCounter], rows: range) -> None:
    parts, counter = job
    parts.write(rows, counter)


def _use_one_thread() -> None:
    """Keep libraries from starting threads of their own: there is one worker per core already."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)


def _keep_published(path: Path) -> None:
    """A published map cannot be made again from here: it is moved aside rather than replaced."""
    try:
        is_published = path.is_file() and read_origin(path) is None
    except UserError:  # damaged: nothing to keep
        return
    if is_published:
        os.replace(path, path.with_suffix(".published.parquet"))
