"""Read and write the bucket map: a parquet file with the token counts of every sample.

Columns, one row per sample in the order of the data set:

cond_seq_len   kept condition tokens                                        in published maps
txt_seq_len    text tokens of all captions with `</s>`, nothing cut           in published maps
key            name of the sample
txt_len_trunc  text tokens that training reads: every caption cut at its limit
height, width  size in pixels at which the sample is trained: its aspect bucket
flags          sum of EMPTY_REGION, VANISHED_REGION, REGION_WITHOUT_TOKEN, UNUSABLE

The file records what it was counted from (`Origin`). Published maps have the first two columns and no such record, so
only their number of rows is checked, and some rows by counting them again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

FORMAT = 1  # raise it when a column's meaning changes
UNUSABLE = 8  # the annotation cannot be read: the sample has no lengths and is not trained on
SCHEMA = pa.schema(
    {
        "cond_seq_len": pa.int64(),
        "txt_seq_len": pa.int64(),
        "key": pa.string(),
        "txt_len_trunc": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "flags": pa.uint8(),
    }
)
PUBLISHED = SCHEMA.names[:2]
METADATA = b"seg2any.bucket_map"
CHECKED_ROWS = 16  # of a published map, counted again
REMEDY = "make it again with prepare_dataset_bucket_map.py"


class PublishedMapWarning(UserWarning):
    """A published map is used, which does not record what it was counted from."""


@dataclass(frozen=True)
class Origin:
    """Everything that the counts depend on.

    annotations  fingerprint of the data set
    tokenizer    digest of the tokenizer of captions
    patch        pixels per token side
    """

    rows: int
    annotations: str
    tokenizer: str
    resolution: int
    cond_scale_factor: int
    aspect: str
    patch: int
    max_sequence_length: int
    regional_max_sequence_length: int
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """A sha256 hex digest of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Origin) -> list[str]:
        """List a phrase per field in which this origin, a file's, differs from `other`, the run's."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [f"{name} {_short(mine)}, not {_short(wanted)}" for name, mine, wanted in pairs if mine != wanted]


@dataclass(frozen=True, eq=False)
class BucketMap:
    """The columns of a map without its keys, each [n].

    Of a published map, `txt_len_trunc` is `txt_seq_len`.
    """

    cond_seq_len: np.ndarray
    txt_seq_len: np.ndarray
    txt_len_trunc: np.ndarray
    height: np.ndarray
    width: np.ndarray
    flags: np.ndarray

    def __len__(self) -> int:
        return len(self.cond_seq_len)

    @property
    def aspect(self) -> np.ndarray:
        """Number of each sample's aspect bucket, int64 [n]; equal sizes have equal numbers."""
        return np.unique(np.stack([self.height, self.width]), axis=1, return_inverse=True)[1].reshape(-1)

    @classmethod
    def read(
        cls,
        path: Path,
        expected: Origin,
        count: Callable[[Sequence[int]], pa.Table] | None = None,
        rows: np.ndarray | None = None,
    ) -> BucketMap:
        """Read the map in `path` if its origin is the `expected` one.

        count  counts given samples again (a `seg2any.data.count.RowCounter`), to check some rows of a published map
        rows   int [n]: a published map's row of each sample, where the data set leaves rows out; None: all, in order

        Raises UserError for a file that is missing, damaged, stale or another data set's, naming what differs. Warns
        with PublishedMapWarning of a published map.
        """
        file, origin = _open(path)
        if origin is None:
            return cls._published(path, _columns(path, file, PUBLISHED), expected, count, rows)
        if origin != expected:
            raise UserError(f"{path}: it was counted for {'; '.join(origin.differences(expected))}; {REMEDY}")
        return cls(**_columns(path, file, [field.name for field in fields(cls)]))

    @classmethod
    def _published(
        cls,
        path: Path,
        columns: dict[str, np.ndarray],
        expected: Origin,
        count: Callable[[Sequence[int]], pa.Table] | None,
        rows: np.ndarray | None,
    ) -> BucketMap:
        cond, text = columns["cond_seq_len"], columns["txt_seq_len"]
        if expected.aspect != "stretch":
            raise UserError(f"{path}: published maps are for squares, not data.aspect {expected.aspect}; {REMEDY}")
        if rows is None and len(cond) != expected.rows:
            raise UserError(f"{path}: it has {len(cond)} rows, but the data set has {expected.rows} samples; {REMEDY}")
        if rows is not None and rows.max(initial=-1) >= len(cond):
            raise UserError(f"{path}: it has {len(cond)} rows, but the data set needs row {rows.max()}; {REMEDY}")
        if rows is not None:
            cond, text = cond[rows], text[rows]
        if count is not None:
            _check_rows(path, cond, text, count)
        warnings.warn(
            f"{path}: a published map does not say what it was counted from, and counts text before it is cut",
            PublishedMapWarning,
            stacklevel=3,
        )
        side = np.full(len(cond), expected.resolution, np.int32)
        return cls(cond, text, text, side, side, np.zeros(len(cond), np.uint8))


def _check_rows(path: Path, cond: np.ndarray, text: np.ndarray, count: Callable[[Sequence[int]], pa.Table]) -> None:
    """Count CHECKED_ROWS samples again, spread over the data set.

    Raises UserError if the file has other counts.
    """
    chosen = sorted({n * (len(cond) - 1) // (CHECKED_ROWS - 1) for n in range(CHECKED_ROWS)})
    for n, row in zip(chosen, count(chosen).to_pylist(), strict=True):
        published, counted = (int(cond[n]), int(text[n])), (row["cond_seq_len"], row["txt_seq_len"])
        if counted != published and not row["flags"] & UNUSABLE:
            raise UserError(
                f"{path}: sample {n} has {published[0]} condition and {published[1]} text tokens, but {row['key']} has "
                f"{counted[0]} and {counted[1]}, so the map belongs to other data or settings; {REMEDY}"
            )


def map_name(side: int) -> str:
    """Return the published file name of a map for condition images of `side` x `side` pixels."""
    return f"{side}H_{side}W-group_bucket.parquet"


def write_tables(path: Path, origin: Origin, tables: Iterable[pa.Table]) -> None:
    """Write tables of SCHEMA one below the other; only one at a time has to be in memory."""
    schema = SCHEMA.with_metadata({METADATA: json.dumps(asdict(origin))})
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def read_origin(path: Path) -> Origin | None:
    """Read what a map was counted from; None for a published map.

    Raises UserError if the file is not a map.
    """
    return _open(path)[1]


def _open(path: Path) -> tuple[pq.ParquetFile, Origin | None]:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with prepare_dataset_bucket_map.py") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({_one_line(error)}); {REMEDY}") from None
    for name in PUBLISHED:
        if name not in file.schema_arrow.names or not pa.types.is_integer(file.schema_arrow.field(name).type):
            raise UserError(f"{path}: not a bucket map, it lacks the column '{name}' of whole numbers; {REMEDY}")
    described = (file.schema_arrow.metadata or {}).get(METADATA)
    if described is None:
        return file, None
    try:
        return file, Origin(**json.loads(described))
    except (ValueError, TypeError):
        raise UserError(f"{path}: it was written by another version of this program; {REMEDY}") from None


def _columns(path: Path, file: pq.ParquetFile, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        table = file.read(columns=list(names))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it is damaged ({_one_line(error)}); {REMEDY}") from None
    if any(table[name].null_count for name in names):
        raise UserError(f"{path}: some rows have no number; {REMEDY}")
    return {name: table[name].to_numpy() for name in names}


def _short(value: object) -> str:
    """Shorten a digest to its first letters."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80]
