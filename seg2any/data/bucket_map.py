"""The bucket map: how many tokens each sample of a data set has, in a parquet file beside the data.

Columns, one row per sample in the order of the data set:

cond_seq_len   kept condition tokens                                        published
txt_seq_len    T5 tokens of all captions with `</s>`, nothing cut           published
key            name of the sample
txt_len_trunc  T5 tokens that training reads: every caption cut at its limit
height, width  size in pixels at which the sample is trained: its aspect bucket
flags          sum of EMPTY_REGION, VANISHED_REGION, REGION_WITHOUT_TOKEN, UNUSABLE

The file also says what it was counted from (`Origin`). The published file has the first two columns and says nothing,
so all that can be checked is its number of rows, and some rows by counting them again.
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

from seg2any.data.catalog import DataSet
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.weights import tokenizer_digest
from seg2any.training.config import Config

FORMAT = 1  # raise it when a column's meaning changes
UNUSABLE = 8  # the sample's annotation cannot be read: it has no lengths and is not to be trained on
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
CHECKED_ROWS = 16  # of a published file
REMEDY = "make it again with prepare_dataset_bucket_map.py"


class PublishedMapWarning(UserWarning):
    """A map that does not say what it was counted from."""


@dataclass(frozen=True)
class Origin:
    """Everything that the counts depend on.

    annotations  fingerprint of the data set
    tokenizer    digest of the T5 tokenizer
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
        """The same for equal origins only."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Origin) -> list[str]:
        """One phrase per field in which this, a file, is not what `other`, the run at hand, needs."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [f"{name} {_short(mine)}, not {_short(wanted)}" for name, mine, wanted in pairs if mine != wanted]


@dataclass(frozen=True, eq=False)
class BucketMap:
    """The columns of a map but its keys, each [n]. Of a published file, `txt_len_trunc` is `txt_seq_len`."""

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
        """int64 [n]: the number of each sample's aspect bucket; equal sizes have equal numbers."""
        return np.unique(np.stack([self.height, self.width]), axis=1, return_inverse=True)[1].reshape(-1)

    @classmethod
    def read(
        cls,
        path: Path,
        expected: Origin,
        count: Callable[[Sequence[int]], pa.Table] | None = None,
        rows: np.ndarray | None = None,
    ) -> BucketMap:
        """The map in `path`, if it was counted from what is `expected`.

        count  counts given samples anew, see `seg2any.data.count_rows.RowCounter`; a published file is tried with it
        rows   int [n]: the published file's row of each sample, where the data set leaves some out; None: all in order

        Raises UserError for a file that is missing, damaged, stale or another data set's, saying what differs. Warns
        with PublishedMapWarning of a file that does not say what it was counted from.
        """
        file, origin = _open(path)
        if origin is None:
            return cls._published(path, _columns(path, file, PUBLISHED), expected, count, rows)
        if origin != expected:
            raise UserError(f"{path}: was counted for {'; '.join(origin.differences(expected))}; {REMEDY}")
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
            raise UserError(f"{path}: is published, for square images; data.aspect is {expected.aspect}; {REMEDY}")
        if rows is None and len(cond) != expected.rows:
            raise UserError(f"{path}: has {len(cond)} rows, the data set {expected.rows} samples; {REMEDY}")
        if rows is not None and rows.max(initial=-1) >= len(cond):
            raise UserError(f"{path}: has {len(cond)} rows, the data set needs row {rows.max()}; {REMEDY}")
        if rows is not None:
            cond, text = cond[rows], text[rows]
        if count is not None:
            _try(path, cond, text, count)
        warnings.warn(
            f"{path}: is a published map: it does not say what it was counted from, and text is counted uncut",
            PublishedMapWarning,
            stacklevel=3,
        )
        side = np.full(len(cond), expected.resolution, np.int32)
        return cls(cond, text, text, side, side, np.zeros(len(cond), np.uint8))


def _try(path: Path, cond: np.ndarray, text: np.ndarray, count: Callable[[Sequence[int]], pa.Table]) -> None:
    """Count some samples anew, spread over the data set. Raises UserError for one that the file has otherwise."""
    chosen = sorted({n * (len(cond) - 1) // (CHECKED_ROWS - 1) for n in range(CHECKED_ROWS)})
    for n, row in zip(chosen, count(chosen).to_pylist(), strict=True):
        theirs, ours = (int(cond[n]), int(text[n])), (row["cond_seq_len"], row["txt_seq_len"])
        if ours != theirs and not row["flags"] & UNUSABLE:
            raise UserError(
                f"{path}: says that sample {n} has {theirs[0]} condition and {theirs[1]} text tokens, but {row['key']} "
                f"has {ours[0]} and {ours[1]}, so it is of other data or settings; {REMEDY}"
            )


def map_path(config: Config) -> Path:
    """Where the map of the training data lies, under its published name.

    In `data.train.params.cache_root`, or for data sets without one in `trainer.cache_dir`. Raises UserError if there is
    neither.
    """
    root = config.data.train.params.get("cache_root") or config.trainer.cache_dir
    if root is None:
        raise UserError("data.train.params.cache_root: is not given; name the folder of the bucket map")
    if not isinstance(root, (str, Path)):
        raise UserError(f"data.train.params.cache_root: is {root!r}; name the folder of the bucket map")
    side = config.resolution // config.model.condition.cond_scale_factor
    return Path(root) / f"{side}H_{side}W-group_bucket.parquet"


def origin_of(data: DataSet, tokenizer: object, patch: int, config: Config) -> Origin:
    """What a map of `data` depends on. `tokenizer` is T5's, `patch` the pixels per token side, 16 for FLUX.1.

    Raises UserError for sizes that hold no token, and for sizes that data.*.params state otherwise than the run.
    """
    if config.resolution // config.model.condition.cond_scale_factor < patch:
        raise UserError(
            f"resolution: {config.resolution} with cond_scale_factor "
            f"{config.model.condition.cond_scale_factor} is less than one token "
            f"of {patch} pixels; raise resolution, or lower cond_scale_factor"
        )
    _check_repeated(config)
    return Origin(
        rows=len(data),
        annotations=data.fingerprint(),
        tokenizer=tokenizer_digest(tokenizer),
        resolution=config.resolution,
        cond_scale_factor=config.model.condition.cond_scale_factor,
        aspect=config.data.aspect,
        patch=patch,
        max_sequence_length=config.model.condition.max_sequence_length,
        regional_max_sequence_length=config.model.condition.regional_max_sequence_length,
    )


def _check_repeated(config: Config) -> None:
    """Published configs repeat sizes of the run among a data set's parameters, where they change nothing here."""
    for side in ("train", "val"):
        params = getattr(config.data, side).params
        for name in ("resolution", "cond_scale_factor"):
            said = params.get(name)
            used = config.resolution if name == "resolution" else config.model.condition.cond_scale_factor
            if said is not None and said != used:
                where = f"data.{side}.params.{name}"
                raise UserError(f"{where}: is {said}, but {name} is {used}; give --{name}, and {where} the same or not")


def write_tables(path: Path, origin: Origin, tables: Iterable[pa.Table]) -> None:
    """Write tables of SCHEMA one below the other; only one has to be in memory at a time."""
    schema = SCHEMA.with_metadata({METADATA: json.dumps(asdict(origin))})
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def read_origin(path: Path) -> Origin | None:
    """What a map says it was counted from, None for a published one. Raises UserError if it is no map."""
    return _open(path)[1]


def _open(path: Path) -> tuple[pq.ParquetFile, Origin | None]:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with prepare_dataset_bucket_map.py") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as parquet ({_one_line(error)}); {REMEDY}") from None
    for name in PUBLISHED:
        if name not in file.schema_arrow.names or not pa.types.is_integer(file.schema_arrow.field(name).type):
            raise UserError(f"{path}: has no column of whole numbers '{name}', so it is no bucket map; {REMEDY}")
    described = (file.schema_arrow.metadata or {}).get(METADATA)
    if described is None:
        return file, None
    try:
        return file, Origin(**json.loads(described))
    except (ValueError, TypeError):
        raise UserError(f"{path}: was written by another version of this program; {REMEDY}") from None


def _columns(path: Path, file: pq.ParquetFile, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        table = file.read(columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: is damaged ({_one_line(error)}); {REMEDY}") from None
    if any(table[name].null_count for name in names):
        raise UserError(f"{path}: has rows without a number; {REMEDY}")
    return {name: table[name].to_numpy() for name in names}


def _short(value: object) -> str:
    """A digest by its first letters."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80]
