"""Read the annotation file for the tools: images, their tars, ids of masks; no captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seg2any.data.caption_table import FAULTS, SCHEMA, read_batches
from seg2any.system.errors import UserError, shown
from seg2any.system.files import atomic_write

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"  # names become paths, so they must not lead elsewhere
NO_TEXT, NAMELESS = FAULTS.index("text is not UTF-8"), FAULTS.index("imagename is missing")
SIZES = ("jpg_bytes", "json_bytes")
PLAN_MARK = b"seg2any.data.sacap"  # metadata key of files that `plan` wrote and may overwrite
PAIR_BYTES = 1_040_000  # jpg and json on average: 1.07 TB for the 1,029,250 images of SACap-1M


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one group; that of image i needs annotations `ids[offsets[i]:offsets[i + 1]]`."""

    group: str
    names: tuple[str, ...]
    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def wanted(self, index: int) -> frozenset[int]:
        """Return the ids of the annotations that an image needs."""
        return frozenset(self.ids[self.offsets[index] : self.offsets[index + 1]].tolist())

    def files(self, index: int) -> tuple[str, str]:
        """Return the names of the jpg and of the json beside it."""
        return self.names[index], json_name(self.names[index])


@dataclass(frozen=True, eq=False)
class Annotations:
    """The rows of an annotation file: row i is image `names[i]` of `groups[codes[i]]`.

    Its annotations are `ids[offsets[i]:offsets[i + 1]]`.

    groups  sorted; a file without the column image_group has the one group ""
    sizes   int64 [n, 2]: bytes of jpg and json, -1 where unknown
    faults  uint8 [n]: index in FAULTS of why training, and so the tools, leave a row out; 0: it is used
    """

    path: Path
    names: np.ndarray
    groups: tuple[str, ...]
    codes: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    faults: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def left_out(self) -> list[str]:
        """Return a line for every kind of fault that occurs."""
        lines = []
        for fault in np.unique(self.faults[self.faults > 0]):
            rows = np.flatnonzero(self.faults == fault)
            count, first = f"{len(rows):,} of {len(self):,}", f"row {rows[0]} ({self.names[rows[0]] or 'no name'})"
            text = f"{count} rows are left out, here and in training: {FAULTS[fault]}; the first is {first}"
            lines.append(f"{self.path}: {text}")
        return lines

    @property
    def regions(self) -> np.ndarray:
        """Number of captioned masks of each image, int64 [n]."""
        return np.diff(self.offsets)

    def bytes(self, rows: np.ndarray) -> int:
        """Return the bytes of both files of all `rows`, estimated where unknown."""
        sizes = self.sizes[rows]
        return int(np.where((sizes >= 0).all(axis=1), sizes.sum(axis=1), PAIR_BYTES).sum())

    def by_group(self, chosen: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield group and row numbers int64 [k] for every group with rows in `chosen`, bool [n]."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(self.codes[rows], kind="stable")]
        starts = np.searchsorted(self.codes[rows], np.arange(len(self.groups) + 1))
        for group, start, end in zip(self.groups, starts[:-1], starts[1:], strict=True):
            if end > start:
                yield group, rows[start:end]

    def images(self, group: str, rows: np.ndarray) -> Images:
        """Return the images of `rows`, all of which belong to `group`."""
        ids = [self.ids[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int64)
        return Images(group, tuple(self.names[rows]), np.concatenate([self.ids[:0], *ids]), offsets)


def json_name(image_name: str) -> str:
    """Return the name of the annotation file beside an image."""
    return Path(image_name).with_suffix(".json").name


def read_annotations(path: Path) -> Annotations:
    """Read the annotation file.

    Raises UserError if it is damaged, lacks a column, or has names that are paths.
    """
    file = _open(path)
    kept = ["imagename", "image_group", "anno_id", "fault"]
    table = pa.Table.from_batches(
        (batch.select(kept) for batch in read_batches(path)), pa.schema([SCHEMA.field(name) for name in kept])
    )
    faults = table["fault"].to_numpy()
    has_text = faults != NO_TEXT
    _check_names(path, "imagename", table["imagename"], has_text & (faults != NAMELESS))
    if "image_group" in file.schema_arrow.names:
        _check_names(path, "image_group", table["image_group"], has_text)
    groups = table["image_group"].combine_chunks().dictionary_encode()
    labels = groups.dictionary.to_pylist()
    order = sorted(range(len(labels)), key=labels.__getitem__)
    regions = table["anno_id"].combine_chunks()
    return Annotations(
        path,
        np.array(table["imagename"].to_pylist(), dtype=object),
        tuple(labels[code] for code in order),
        np.argsort(order)[groups.indices.to_numpy()] if labels else np.zeros(0, np.int64),
        pc.fill_null(pc.list_flatten(regions), -1).to_numpy(zero_copy_only=False),
        np.concatenate([[0], np.cumsum(pc.list_value_length(regions).to_numpy(zero_copy_only=False))]).astype(np.int64),
        np.stack([_sizes(file, column) for column in SIZES], axis=1),
        faults,
    )


def write_rows(source: Path, target: Path, chosen: np.ndarray, sizes: np.ndarray) -> None:
    """Write the rows of `source` where bool [n] `chosen`, with all columns and `sizes`.

    sizes  int64 [n, 2]: bytes of jpg and json, -1 where unknown

    The result is an annotation file again, for these tools and for training on the subset. Raises UserError if the disk
    is full, or if `target` exists and was not written by `plan` or `verify`.
    """
    if target.exists() and PLAN_MARK not in (_open(target).schema_arrow.metadata or {}):
        raise UserError(f"{target}: the file exists and was not made by this command; give another --output")
    file = _open(source)
    kept = [field for field in file.schema_arrow if field.name not in SIZES]
    metadata = {**(file.schema_arrow.metadata or {}), PLAN_MARK: source.name.encode()}
    schema = pa.schema([*kept, *(pa.field(column, pa.int64()) for column in SIZES)], metadata)
    start = 0
    try:
        with atomic_write(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for batch in file.iter_batches(8192, columns=[field.name for field in kept]):
                rows = np.flatnonzero(chosen[start : start + len(batch)])
                known = [pa.array(sizes[start + rows, i], mask=sizes[start + rows, i] < 0) for i in range(2)]
                table = pa.Table.from_batches([batch]).take(pa.array(rows))
                columns = [*(table[field.name] for field in kept), *known]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                start += len(batch)
    except OSError as error:
        reason = shown(error.strerror or str(error))
        raise UserError(f"{target}: cannot be written ({reason}); make room, or choose another --output") from None
    except pa.ArrowException as error:  # Arrow can read some types of columns but not select their rows
        reason = shown(str(error))
        raise UserError(f"{source}: its rows cannot be copied ({reason}); write texts as plain strings") from None


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of SACap-1M's parquet")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({shown(str(error))}); download it again") from None


def _check_names(path: Path, column: str, values: pa.ChunkedArray, needed: np.ndarray) -> None:
    """Raise UserError unless every value where bool [n] `needed` is a plain file name."""
    good = pc.match_substring_regex(values, NAME).to_numpy()
    wrong = np.flatnonzero(~good & needed)
    if len(wrong):
        text = shown(values[int(wrong[0])].as_py())
        raise UserError(f"{path}: {column} of row {wrong[0]} is {text}; write a plain file name")


def _sizes(file: pq.ParquetFile, column: str) -> np.ndarray:
    if column not in file.schema_arrow.names:
        return np.full(file.metadata.num_rows, -1, np.int64)
    return pc.fill_null(file.read(columns=[column])[column], -1).to_numpy().astype(np.int64)
