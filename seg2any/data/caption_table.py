"""Read the caption table of SACap-1M, a parquet file of a million rows.

All rows are checked once, and then read one by one.

Rows are kept as Arrow columns, never as Python objects. With a cache folder they lie in a file that is mapped into
memory, so any number of processes share one copy, and opening the file again is instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seg2any.attention.settings import MAX_ENTITIES
from seg2any.data.picture_index import writing_cache
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.limits import EXPANSION, limits
from seg2any.system.weights import file_digest

FORMAT = "4"  # raise it when the columns or FAULTS below change
BATCH, PIECE = 16384, 64  # rows that are checked at once, and that are unpacked at once
SCHEMA = pa.schema(
    {
        "imagename": pa.string(),
        "image_group": pa.string(),
        "caption": pa.string(),
        "anno_id": pa.list_(pa.int64()),
        "region_caption": pa.list_(pa.string()),
        "fault": pa.uint8(),
    }
)
FAULTS = (
    "",
    "text is not UTF-8",
    "imagename is missing",
    "segments_info is empty",
    "a region has no anno_id or no caption",
    f"has more than {MAX_ENTITIES} regions",
    "two regions have the same anno_id",
    "imagename or image_group is a path",
    "a text is too long",
)
PLAIN = r"^[^/\\\x00]+$"  # a name without folders


@dataclass(frozen=True)
class Row:
    """One image of the table: `captions[i]` describes the mask with id `anno_ids[i]`.

    caption  describes the whole image; None: there is none
    """

    imagename: str
    image_group: str
    caption: str | None
    anno_ids: tuple[int, ...]
    captions: tuple[str, ...]


class CaptionTable:
    """The rows of the parquet file `path`, as Arrow columns.

    They are in memory, or mapped from a file in `cache_root`.

    Raises UserError for a file that is missing, not parquet, or lacks a column.
    """

    def __init__(self, path: Path, cache_root: Path | None):
        if not path.is_file():
            raise UserError(f"{path}: no such file; give SACap's parquet as seg_caption_path")
        self.path, self.cache_root = path, cache_root
        self._columns: pa.Table | None = None

    def __getstate__(self) -> dict:
        """Leave the columns out: a process that unpickles this opens them itself."""
        return {**self.__dict__, "_columns": None}

    @property
    def columns(self) -> pa.Table:
        """The rows as a table of SCHEMA; `fault` is an index into FAULTS."""
        if self._columns is None:
            self._columns = self._open()
        return self._columns

    def row(self, number: int) -> Row:
        """Return one row as Python objects."""
        row = {name: self.columns[name][number].as_py() for name in SCHEMA.names[:-1]}
        caption = row["caption"] if row["caption"] and row["caption"].strip() else None
        return Row(row["imagename"], row["image_group"], caption, tuple(row["anno_id"]), tuple(row["region_caption"]))

    def digest(self) -> str:
        """Return the sha256 hex digest of the parquet file."""
        known = (self.columns.schema.metadata or {}).get(b"digest")
        return known.decode() if known else file_digest(self.path)

    def _open(self) -> pa.Table:
        if self.cache_root is None:
            return pa.Table.from_batches(read_batches(self.path), SCHEMA)
        status = self.path.stat()
        stamp = f"format {FORMAT}, {status.st_size} bytes, changed {status.st_mtime_ns}"
        kept = self.cache_root / f"{self.path.stem}-columns.arrow"
        mapped = _map(kept, stamp)
        if mapped is None:
            with writing_cache(self.cache_root):
                _convert(self.path, kept, {"stamp": stamp, "digest": file_digest(self.path)})
            mapped = _map(kept, stamp)
        return mapped


def _map(kept: Path, stamp: str) -> pa.Table | None:
    """Map the columns of the file `kept` into memory; None without a whole file of this stamp."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(kept)))
    except (OSError, pa.ArrowException):
        return None
    if (reader.schema.metadata or {}).get(b"stamp") != stamp.encode():
        return None
    return reader.read_all()


def _convert(path: Path, kept: Path, metadata: dict[str, str]) -> None:
    with atomic_write(kept) as temporary, pa.ipc.new_file(str(temporary), SCHEMA.with_metadata(metadata)) as writer:
        for batch in read_batches(path):
            writer.write_batch(batch)


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet file in batches of SCHEMA. Raises as CaptionTable does.

    Training and the tools that extract the images both read through here, so they leave out the same rows.
    """
    try:
        file = pq.ParquetFile(path)
        columns = _needed(path, file.schema_arrow)
        most, size = limits().table_bytes + EXPANSION * path.stat().st_size, 0
        pieces: list[pa.RecordBatch] = []
        for piece in file.iter_batches(PIECE, columns=columns):
            pieces.append(piece)
            if (size := size + _unpacked_bytes(piece)) > most:
                raise UserError(f"{path}: its texts unpack to more than {most >> 20} MiB; write it again, uncompressed")
            if len(pieces) == BATCH // PIECE:
                yield from map(_checked, _joined(pieces))
                pieces = []
        if pieces:
            yield from map(_checked, _joined(pieces))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last one of columns' names
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:80]})") from None


def _unpacked_bytes(piece: pa.RecordBatch) -> int:
    """Return the bytes of a batch when every text stands for itself and not for an entry of a dictionary."""
    texts = [piece[name] for name in piece.schema.names if name != "segments_info"]
    texts.append(pc.struct_field(pc.list_flatten(piece["segments_info"]), "caption"))
    packed = (text for text in texts if pa.types.is_dictionary(text.type))
    return piece.nbytes + sum(pc.sum(pc.binary_length(one.dictionary).take(one.indices)).as_py() or 0 for one in packed)


def _joined(pieces: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    return pa.Table.from_batches(pieces).combine_chunks().to_batches()


def _needed(path: Path, schema: pa.Schema) -> list[str]:
    """List the columns to read. Raises UserError for a missing column or a wrong type."""
    for name in ("imagename", "caption", "segments_info"):
        if name not in schema.names:
            raise UserError(f"{path}: column '{name}' is missing; it has {', '.join(schema.names)}")
    segments = schema.field("segments_info").type
    element = segments.value_type if pa.types.is_list(segments) or pa.types.is_large_list(segments) else segments
    fields = {field.name: field.type for field in element} if pa.types.is_struct(element) else {}
    if element is segments or not pa.types.is_integer(fields.get("anno_id", pa.null())) or "caption" not in fields:
        raise UserError(f"{path}: column 'segments_info' is {segments}; give a list of (anno_id: int, caption: text)")
    return [name for name in ("imagename", "image_group", "caption", "segments_info") if name in schema.names]


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert a batch of the file to SCHEMA, with the first of FAULTS that fits each row."""
    segments = batch["segments_info"]
    counts = pc.fill_null(pc.list_value_length(segments), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    regions = pc.list_flatten(segments)
    ids = pc.struct_field(regions, "anno_id").cast(pa.int64())
    captions, no_captions = _texts(pc.struct_field(regions, "caption"))
    names, no_names = _texts(batch["imagename"])
    texts, no_texts = _texts(batch["caption"])
    has_groups = "image_group" in batch.schema.names
    groups, no_groups = _texts(batch["image_group"] if has_groups else pa.nulls(len(batch)))
    bad = np.zeros((len(FAULTS), len(batch)), bool)
    row_of = np.repeat(np.arange(len(batch)), counts)
    bad[1] = no_names | no_texts | no_groups
    bad[1, row_of[no_captions]] = True
    bad[2] = _blank(names)
    bad[3] = counts == 0
    bad[4, row_of[_blank(captions) | pc.is_null(ids).to_numpy(False)]] = True
    bad[5] = counts > MAX_ENTITIES
    bad[7] = ~(_plain(names) & (_plain(groups) | _blank(groups)))
    bad[8] = _long(texts) | _long(names) | _long(groups)
    bad[8, row_of[_long(captions)]] = True
    bad[6, row_of[_repeated(pc.fill_null(ids, 0).to_numpy(False), row_of)]] = True
    return pa.RecordBatch.from_arrays(
        [
            pc.fill_null(_short(names), ""),
            pc.fill_null(_short(groups), ""),
            _short(texts),
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(offsets, _short(captions)),
            pa.array(bad.argmax(axis=0), pa.uint8()),
        ],
        schema=SCHEMA,
    )


def _texts(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the strings, null where they are not UTF-8, and bool [N]: where they are not."""
    texts = values.cast(pa.string())
    try:
        texts.validate(full=True)
        return texts, np.zeros(len(texts), bool)
    except pa.ArrowInvalid:
        found = [_decoded(value) for value in texts.cast(pa.binary()).to_pylist()]
        is_lost = np.array([text is None for text in found], bool) & texts.is_valid().to_numpy(zero_copy_only=False)
        return pa.array(found, pa.string()), is_lost


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _repeated(ids: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Return int64 [K]: the regions whose id occurred in their row before."""
    order = np.lexsort((ids, row_of))
    same = (np.diff(ids[order]) == 0) & (np.diff(row_of[order]) == 0)
    return order[1:][same]


def _plain(names: pa.Array) -> np.ndarray:
    """Return bool [N]: where a text is a name without folders, which a path may be made of."""
    is_name = pc.and_(pc.match_substring_regex(names, PLAIN), pc.invert(pc.is_in(names, pa.array([".", ".."]))))
    return pc.fill_null(is_name, False).to_numpy(zero_copy_only=False)


def _long(texts: pa.Array) -> np.ndarray:
    """Return bool [N]: where a text has more characters than a caption may have."""
    return pc.fill_null(pc.greater(pc.utf8_length(texts), limits().characters), False).to_numpy(zero_copy_only=False)


def _short(texts: pa.Array) -> pa.Array:
    """Return the texts without those that are too long, whose rows are left out."""
    return pc.if_else(pa.array(_long(texts)), pa.scalar(None, pa.string()), texts)


def _blank(texts: pa.Array) -> np.ndarray:
    """Return bool [N]: where a text is null or nothing but white space."""
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)
    return pc.fill_null(blank, True).to_numpy(zero_copy_only=False)
