"""OverLayBench (arXiv 2509.19282): boxes that overlap much, in three grades of difficulty."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seg2any.data.dataset import Annotation, Sample, SampleError
from seg2any.data.layout_sets.records import (
    FORMS,
    Record,
    box_of,
    check_count,
    draw_box,
    from_back_to_front,
    ordered,
    stacked,
)
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.layout.document import decode_json
from seg2any.layout.images import ImageError, opened_image
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.limits import EXPANSION, limits

SPLITS = ("simple", "medium", "hard")
COLUMNS = ("image_id", "annotation", "image")
PIECE = 16  # rows that are unpacked at once
# Names under which the JSON of an annotation may hold each part; the card documents the columns only.
CAPTIONS = ("caption", "prompt", "global_caption", "global_prompt", "image_caption")
LISTS = ("annos", "instances", "objects", "annotations", "regions")
TEXTS = ("caption", "prompt", "local_prompt", "desc", "description", "text", "category_name", "label", "name")
BOXES = ("bbox", "box")


class OverLayBenchDataset:
    """Rows of `root`/data/SPLIT-*.parquet: image, image_id, and the JSON of an annotation, with boxes.

    Documented are the columns and splits. A reading of ours is the JSON: a caption, and a list of regions, each with a
    caption and a box (`boxes`: "xyxy" or "xywh", in pixels or shares). A region may list in `occludes` the numbers,
    from 1, of those that it hides, as OcclusionFormer's layouts do; else smaller boxes lie in front.
    """

    def __init__(self, root: Path, split: str = "simple", boxes: str = "xyxy", on_error: str = "skip"):
        for name, value, known in (("split", split, SPLITS), ("boxes", boxes, FORMS)):
            if value not in known:
                raise UserError(f"data set overlaybench: {name} is {value!r}; choose one of {', '.join(known)}")
        self.boxes = boxes
        self.paths = sorted(Path(root).rglob(f"{split}-*.parquet"))
        if not self.paths:
            raise UserError(f"data set overlaybench: no {split}-*.parquet below {root}; download the data set there")
        self._places, left_out = [], []
        seen: set[str] = set()
        for place, key, text in self._rows():
            if not key or key in seen:
                left_out.append(LeftOut(key or str(place), f"{self.paths[place[0]]}: image_id is missing or repeated"))
                continue
            seen.add(key)
            self._places.append((*place, key, text))
        self.left_out = tuple(left_out)
        check_left_out("overlaybench", self.left_out, len(self._places) + len(left_out), on_error)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        with self._opened(index) as image:
            pixels = np.asarray(image.convert("RGB"))
        return Sample(pixels, self._record(index, pixels.shape[:2]).annotation().layout)

    def key(self, index: int) -> str:
        """Return the image_id."""
        return self._places[index][3]

    def annotation(self, index: int) -> Annotation:
        with self._opened(index) as image:
            width, height = image.size
        return self._record(index, (height, width)).annotation()

    def photo_digest(self, index: int) -> str:
        """Return "": the benchmark's images never change."""
        return ""

    def fingerprint(self) -> str:
        """Return a digest of ids and annotations."""
        about = repr([place[3:] for place in self._places])
        return hashlib.sha256(f"{self.boxes} {about}".encode(errors="backslashreplace")).hexdigest()

    def _rows(self) -> Iterator[tuple[tuple[int, int, int], str, str]]:
        """Yield the place of each row (file, row group, row in it), its id and its annotation."""
        for number, path in enumerate(self.paths):
            file = _opened(path)
            for group in range(file.num_row_groups):
                table = _read_group(path, file, group, COLUMNS[:2])
                for row, values in enumerate(_plain(path, table)):
                    yield (number, group, row), str(values["image_id"] or ""), str(values["annotation"] or "")

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        number, group, row, key, _ = self._places[index]
        path = self.paths[number]
        images = _images(path, group)
        value = images[row].as_py() if row < len(images) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        try:
            with opened_image(BytesIO(data)) as image:
                yield image
        except (ImageError, TypeError) as error:
            raise SampleError(f"{path}: image {key} cannot be read ({error}); download the file again") from None

    def _record(self, index: int, size: tuple[int, int]) -> Record:
        number, _, _, key, text = self._places[index]
        where = f"{self.paths[number]}: {key}"
        try:
            document = decode_json(text.encode())
        except ValueError:
            raise SampleError(f"{where}: its annotation is not JSON; download the file again") from None
        regions = _first(where, document, LISTS, list)
        check_count(where, len(regions), size)
        masks, captions = [], []
        for number, region in enumerate(regions, start=1):
            at = f"{where}: region {number}"
            masks.append(draw_box(at, box_of(at, _first(at, region, BOXES, list), self.boxes, size), size))
            captions.append(_first(at, region, TEXTS, str))
        caption = next((document[name] for name in CAPTIONS if isinstance(document.get(name), str)), None)
        stack, texts = stacked(where, masks, captions)
        return ordered(Record(key, size, stack, texts, caption), from_back_to_front(stack, _in_front(where, regions)))


@functools.lru_cache(maxsize=2)  # samples are read in order, and a group holds many images
def _images(path: Path, group: int) -> pa.ChunkedArray:
    return _read_group(path, _opened(path), group, COLUMNS[2:])["image"]


def _read_group(path: Path, file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a row group, a few rows at once, until they are more than the limits say."""
    most, size, pieces = limits().table_bytes + EXPANSION * path.stat().st_size, 0, []
    try:
        for piece in file.iter_batches(PIECE, row_groups=[group], columns=list(columns)):
            pieces.append(piece)
            if (size := size + piece.nbytes) > most:
                raise UserError(f"{path}: its rows unpack to more than {most >> 20} MiB; download it again")
        return pa.Table.from_batches(pieces, file.schema_arrow.empty_table().select(list(columns)).schema)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is damaged ({brief(error)}); download it again") from None


def _plain(path: Path, table: pa.Table) -> list[dict]:
    try:
        return table.to_pylist()
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: is damaged ({brief(error)}); download it again") from None


def _opened(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no parquet file ({shown(str(error))}); download it again") from None
    try:
        names = file.schema_arrow.names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is damaged ({brief(error)}); download it again") from None
    lacking = [name for name in COLUMNS if name not in names]
    if lacking:
        raise UserError(f"{path}: lacks the column {lacking[0]}; give the files of OverLayBench_Eval")
    return file


def _first(where: str, document: object, names: Sequence[str], kind: type) -> object:
    """Return the value of the first of `names` that there is. Raises SampleError."""
    if not isinstance(document, Mapping):
        raise SampleError(f"{where}: is {shown(document)}; write an object")
    found = next((document[name] for name in names if isinstance(document.get(name), kind)), None)
    if found is None:
        has = ", ".join(map(str, document)) or "nothing"
        raise SampleError(f"{where}: has none of {', '.join(names)} (it has {shown(has)}); convert the annotations")
    return found


def _in_front(where: str, regions: Sequence[Mapping]) -> np.ndarray | None:
    """Read who hides whom from `occludes`, bool [N, N]; None where no region has it. Raises SampleError."""
    if not any("occludes" in region for region in regions):
        return None
    hides = np.zeros((len(regions),) * 2, bool)
    for number, region in enumerate(regions):
        for word in str(region.get("occludes") or "").replace(",", " ").split():
            if not word.isdecimal() or len(word) > 9 or not 1 <= int(word) <= len(regions):
                raise SampleError(f"{where}: region {number + 1} occludes {shown(word)}; write numbers from 1")
            hides[number, int(word) - 1] = True
    return hides
