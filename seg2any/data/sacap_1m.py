"""SACap-1M: captions of SA-1B's images and of some of their masks (paper section 3.4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seg2any.data.caption_table import FAULTS, CaptionTable, Row
from seg2any.data.dataset import Annotation, RunLengths, Sample, SampleError
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.pictures import in_words, is_utf8, read_stored_photo
from seg2any.layout.checks import LayoutError
from seg2any.layout.document import read_json
from seg2any.layout.rle import decode_runs
from seg2any.system.errors import UserError, shown

NO_IMAGE, NO_JSON, REPEATED = range(len(FAULTS), len(FAULTS) + 3)


class SACap1MDataset:
    """Rows of the parquet `seg_caption_path`; jpgs and jsons lie in `image_root`/<image_group>.

    Regions are in the order of the json, not of the parquet; masks of the json without a caption are skipped.
    `left_out` lists rows without files, regions or captions, found by listing the folders; `rows` int64 [n] is the row
    of each sample. No json is opened for that: a json that is damaged or lacks a mask raises SampleError when its
    sample is read. `cache_root` keeps the table in a form that need not be held in memory.

    Raises UserError if a file, folder or column is missing, and for the first bad row if `on_error` is "fail".
    """

    def __init__(
        self, seg_caption_path: Path, image_root: Path, cache_root: Path | None = None, on_error: str = "skip"
    ):
        self.image_root, self.cache_root = Path(image_root), Path(cache_root) if cache_root else None
        if not self.image_root.is_dir():
            raise UserError(f"data set sacap_1m: no folder {image_root}; extract SA-1B's images and jsons there")
        self.table = CaptionTable(Path(seg_caption_path), self.cache_root)
        faults = _faults(self.table.columns, self.image_root)
        self.rows = np.flatnonzero(faults == 0)
        self.left_out: Sequence[LeftOut] = _LeftOutRows(self.table, self.image_root, faults)
        listed = self.cache_root / f"{self.table.path.stem}-left_out.tsv" if self.cache_root else None
        check_left_out("sacap_1m", self.left_out, len(faults), on_error, listed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        photo = _photo(self.image_root, self._row(index))
        image, layout = read_stored_photo(photo), self.annotation(index).layout
        if image.shape[:2] != layout.size:
            raise SampleError(
                f"{photo}: it is {in_words(image.shape)}, but its json's masks are {in_words(layout.size)}"
            )
        return Sample(image, layout)

    def key(self, index: int) -> str:
        return os.path.splitext(self.table.columns["imagename"][int(self.rows[index])].as_py())[0]

    def annotation(self, index: int) -> Annotation:
        row = self._row(index)
        path = _photo(self.image_root, row).with_suffix(".json")
        try:
            size, runs, captions = _join(row, read_json(path), path)
        except LayoutError as error:
            raise SampleError(str(error)) from None
        if not any(inside[1::2].any() for inside in runs):
            raise SampleError(f"{path}: none of its captioned masks has a pixel; leave its row out")
        return Annotation(path.stem, RunLengths(size, runs), captions, row.caption)

    def photo_digest(self, index: int) -> str:
        """Return "": SA-1B's photos never change, so a million need not be read."""
        return ""

    def fingerprint(self) -> str:
        """Return a digest of the parquet's bytes and the rows in use.

        SA-1B's jsons never change, so none is read.
        """
        return hashlib.sha256(self.table.digest().encode() + self.rows.astype("<i8").tobytes()).hexdigest()

    def _row(self, index: int) -> Row:
        return self.table.row(int(self.rows[index]))


class _LeftOutRows(Sequence[LeftOut]):
    """Rows that are left out, described on demand: there may be a million of them."""

    def __init__(self, table: CaptionTable, image_root: Path, faults: np.ndarray):
        self.table, self.image_root = table, image_root
        self.numbers = np.flatnonzero(faults)
        self.faults = faults[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> LeftOut:
        number, fault = int(self.numbers[index]), int(self.faults[index])
        row = self.table.row(number)
        photo = _photo(self.image_root, row)
        reason = {
            NO_IMAGE: f"{photo}: no such file",
            NO_JSON: f"{photo.with_suffix('.json')}: no such file",
            REPEATED: f"{self.table.path}: row {number}: an earlier row has an image of the same name",
        }
        key = photo.stem or f"row {number}"
        return LeftOut(key, reason.get(fault) or f"{self.table.path}: row {number}: {FAULTS[fault]}")


def _photo(image_root: Path, row: Row) -> Path:
    return image_root / row.image_group / row.imagename


def _faults(columns: pa.Table, image_root: Path) -> np.ndarray:
    """Return uint8 [rows]: the fault of each row, 0 for none.

    Each folder is listed once; no file is opened.

    Only the names and some numbers of all rows are held at once: 70 MB for a million.
    """
    faults = columns["fault"].to_numpy().copy()
    hashes = np.zeros(len(faults), np.int64)  # of the names without suffix
    names = columns["imagename"].combine_chunks()
    for group, rows in _by_folder(columns["image_group"]):
        images, files = names.take(pa.array(rows)), _listing(image_root / group)
        stems = _stems(images)
        jsons = pc.binary_join_element_wise(stems, "json", ".")
        for wanted, fault in ((images, NO_IMAGE), (jsons, NO_JSON)):
            there = pc.is_in(wanted, files).to_numpy(zero_copy_only=False)
            faults[rows[~there & (faults[rows] == 0)]] = fault
        hashes[rows] = [hash(stem) for stem in stems.to_pylist()]
    usable = np.flatnonzero(faults == 0)
    alike = usable[_not_unique(hashes[usable])]
    first = np.unique(_stems(names.take(pa.array(alike))).dictionary_encode().indices, return_index=True)[1]
    faults[np.delete(alike, first)] = REPEATED
    return faults


def _by_folder(groups: pa.ChunkedArray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every group and the numbers of its rows, ascending."""
    numbers: dict[str, int] = {}
    codes = [np.zeros(0, np.int32)]
    for chunk in groups.chunks:
        encoded = chunk.dictionary_encode()
        known = [numbers.setdefault(group, len(numbers)) for group in encoded.dictionary.to_pylist()]
        codes.append(np.array(known, np.int32)[encoded.indices.to_numpy()])
    codes = np.concatenate(codes)
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(numbers))
    stops = np.cumsum(counts)
    for group, start, stop in zip(numbers, stops - counts, stops, strict=True):
        yield group, order[start:stop]


def _stems(names: pa.Array) -> pa.Array:
    """Return the names without their suffix."""
    return pc.replace_substring_regex(names, r"\.[^.]*$", "")


def _not_unique(values: np.ndarray) -> np.ndarray:
    """Return int64 [K]: the positions of values that occur several times, ascending."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    return np.unique(order[np.concatenate([same, same + 1])])


def _listing(folder: Path) -> pa.Array:
    """List the names of the files; those that are not UTF-8 belong to no row."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a group with a zero byte
        return pa.array([], pa.string())
    except OSError as error:
        where = shown(str(folder))
        raise UserError(f"{where}: cannot be listed ({error.strerror}); allow it, or correct image_group") from None
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array(list(filter(is_utf8, names)), pa.string())


def _join(row: Row, document: object, path: Path) -> tuple[tuple[int, int], tuple[np.ndarray, ...], tuple[str, ...]]:
    """Return (H, W), runs and captions of the row's regions, in the order of the json."""
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise SampleError(f"{path}: this is not SA-1B's json, it has no list of annotations; extract it again")
    caption_of = dict(zip(row.anno_ids, row.captions, strict=True))
    wanted = [(n, one) for n, one in enumerate(annotations) if _hashable(one.get("id")) in caption_of]
    found = {one["id"] for _, one in wanted}
    if len(found) < len(row.anno_ids) or len(found) < len(wanted):
        missing = [str(anno_id) for anno_id in row.anno_ids if anno_id not in found]
        problem = f"it lacks annotation {', '.join(missing[:5])}" if missing else "it has an annotation twice"
        raise SampleError(f"{path}: {problem} that the captions describe; extract it again")
    decoded = [
        decode_runs(f"{path}: annotations[{n}]", one["segmentation"])
        if isinstance(one.get("segmentation"), dict)
        else decode_runs(f"{path}: annotations[{n}]", {})
        for n, one in wanted
    ]
    sizes = {size for _, size in decoded}
    if len(sizes) > 1:
        raise SampleError(f"{path}: its masks have different sizes, such as {sorted(sizes)[:2]}")
    captions = tuple(caption_of[one["id"]] for _, one in wanted)
    return decoded[0][1], tuple(runs for runs, _ in decoded), captions


def _hashable(value: object) -> float | None:
    """Return a number as it is, or None: some writers of json write 5.0 for the id 5."""
    return value if isinstance(value, int | float) else None
