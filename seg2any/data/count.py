"""Count the tokens of a data set with several processes, interrupted and continued.

The rows are cut into parts of PART rows. A part is counted by one process, and its file is complete or absent. Whoever
finds all parts there puts them together; the result does not depend on who counted what, or how often it was begun.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from seg2any.data.aspect import target_size
from seg2any.data.bucket_map import SCHEMA, UNUSABLE, BucketMap, Origin, read_origin, write_tables
from seg2any.data.dataset import Annotation, ClosedSet, DataSet, SampleError
from seg2any.data.regions import count_regions, text_lengths
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.system.workers import WorkerPool

PART = 256  # rows: about a second of work
MERGED = 256  # parts that are put together at a time


@dataclass(frozen=True, eq=False)
class RowCounter:
    """A function that counts samples of `data` for the sizes and limits in `origin`.

    Picklable, for worker processes.

    tokenizer  of captions
    on_error   skip: samples whose annotation cannot be read are flagged UNUSABLE; fail: they raise SampleError
    """

    data: DataSet
    tokenizer: object
    origin: Origin
    on_error: str = "skip"

    def __call__(self, indices: Sequence[int]) -> pa.Table:
        """Return one row of SCHEMA for each sample, in the order of `indices`."""
        rows, captions = [], []
        for index in indices:
            try:
                annotation = self.data.annotation(index)
            except SampleError:
                if self.on_error == "fail":
                    raise
                rows.append(
                    {"key": self.data.key(index), "height": 0, "width": 0, "cond_seq_len": 0, "flags": UNUSABLE}
                )
                captions.append(())
                continue
            rows.append(self._regions(annotation))
            captions.append((annotation.caption, *annotation.captions))
        texts = [[text for text in sample if text is not None] for sample in captions]
        lengths = text_lengths(texts, self.tokenizer, self._class_lengths)
        for row, sample, numbers in zip(rows, captions, lengths, strict=True):
            row["txt_seq_len"] = sum(numbers)
            row["txt_len_trunc"] = self._cut(sample, numbers)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    @cached_property
    def _class_lengths(self) -> dict[str, int]:
        """Lengths of a closed set's captions, which occur again and again; empty for an open set."""
        names = list(dict.fromkeys(self.data.class_captions)) if isinstance(self.data, ClosedSet) else []
        return dict(zip(names, *text_lengths([names], self.tokenizer), strict=True))

    def _regions(self, annotation: Annotation) -> dict:
        origin = self.origin
        scale = origin.cond_scale_factor
        size = target_size(annotation.regions.size, origin.resolution, origin.aspect, origin.patch * scale)
        cond_size = size[0] // scale, size[1] // scale
        counts = count_regions(annotation.regions, size, cond_size, origin.patch, origin.aspect)
        return {
            "key": annotation.key,
            "height": size[0],
            "width": size[1],
            "cond_seq_len": counts.condition,
            "flags": counts.flags,
        }

    def _cut(self, captions: Sequence[str | None], lengths: Sequence[int]) -> int:
        """Sum `lengths`, each cut at its caption's limit; a caption of None has no length."""
        limit, regional = self.origin.max_sequence_length, self.origin.regional_max_sequence_length
        has_caption = bool(captions) and captions[0] is not None
        limits = [limit] * has_caption + [regional] * (len(lengths) - has_caption)
        return int(np.minimum(lengths, limits).sum())


@dataclass(frozen=True)
class Parts:
    """The files of an unfinished map, in a folder beside `path`.

    Parts of another origin lie in another folder.
    """

    path: Path
    origin: Origin

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.path.with_name(f"{self.path.stem}-parts-{self.origin.digest[:12]}")

    @property
    def ranges(self) -> list[range]:
        """The rows of each part, in order."""
        starts = range(0, self.origin.rows, PART)
        return [range(start, min(start + PART, self.origin.rows)) for start in starts]

    def file(self, rows: range) -> Path:
        """Return the file of the part with these rows."""
        return self.folder / f"rows-{rows.start:09d}-{rows.stop:09d}.parquet"

    def missing(self, ranges: Sequence[range]) -> list[range]:
        """List those of `ranges` that nobody has counted yet."""
        present = {path.name for path in self.folder.glob("rows-*.parquet")}
        return [rows for rows in ranges if self.file(rows).name not in present]

    def others(self) -> str:
        """Describe parts of another origin: a shard was started with other data or settings.

        Returns "" if there are none.
        """
        found = sorted(set(self.path.parent.glob(f"{self.path.stem}-parts-*")) - {self.folder})
        return f"; {found[0].name} holds parts of other data or settings, which do not count" if found else ""

    def is_finished(self) -> bool:
        """Tell whether the map exists, whole and of this origin; if not, it has to be made again."""
        try:
            if not self.path.is_file() or read_origin(self.path) != self.origin:
                return False
            return len(BucketMap.read(self.path, self.origin)) == self.origin.rows
        except UserError:
            return False

    def write(self, rows: range, counter: RowCounter) -> None:
        """Count a part and write it. Raises UserError if the disk is full or cannot be written."""
        counted = counter(rows)
        try:
            with self._writing():
                write_tables(self.file(rows), self.origin, [counted])
        except FileNotFoundError:  # another run has finished the map and removed the folder
            if not self.is_finished():
                raise

    def merge(self) -> None:
        """Write the map and remove the parts. Another process may do the same at the same time."""
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
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            raise UserError(f"{file}: this part is damaged; remove it and run the same command again") from None


def make_map(path: Path, counter: RowCounter, process: Process, workers: int, show_progress: bool = True) -> str:
    """Count this process's share of the map `path`; put the map together if nothing is missing.

    workers  worker processes; 1 counts in this process

    Returns a line that says what was done. Raises UserError for what the data set refuses, and if a worker was killed.
    """
    parts = Parts(path, counter.origin)
    if parts.is_finished():
        return f"{path}: up to date, {counter.origin.rows} rows"
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
    else:  # another run of the same command was faster
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
    """Move a published map aside rather than replace it: it cannot be made again from here."""
    try:
        is_published = path.is_file() and read_origin(path) is None
    except UserError:  # damaged: nothing to keep
        return
    if is_published:
        os.replace(path, path.with_suffix(".published.parquet"))
