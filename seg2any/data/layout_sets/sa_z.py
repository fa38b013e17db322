"""SA-Z (OcclusionFormer): SACap-1M's regions with the order in which they hide each other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seg2any.data.dataset import Annotation, Sample, SampleError
from seg2any.data.layout_sets.records import Record, box_of, check_count, draw_box, from_back_to_front, ordered, stacked
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.pictures import check_stored_photo, in_words, read_stored_photo
from seg2any.layout.checks import LayoutError
from seg2any.layout.document import read_json
from seg2any.layout.rle import decode_runs, draw_runs
from seg2any.system.errors import UserError, shown

REGIONS = ("masks", "boxes")


class SAZDataset:
    """Records of SA-Z.json, keyed by image id; photos are named by them relative to `image_root`.

    `regions` are "masks", what is visible of each thing, or "boxes", whose overlaps make the order visible. As
    documented, `pred_order[i][j]` is 1 where region i hides region j; regions come out from the back to the front.
    """

    def __init__(self, annotation_path: Path, image_root: Path, regions: str = "boxes", on_error: str = "skip"):
        if regions not in REGIONS:
            raise UserError(f"data set sa_z: regions is {regions!r}; choose one of {', '.join(REGIONS)}")
        self.path, self.image_root, self.regions = Path(annotation_path), Path(image_root), regions
        try:
            content = read_json(self.path)
        except LayoutError as error:
            raise UserError(str(error)) from None
        if not isinstance(content, dict):
            raise UserError(f"{self.path}: is no object of records by image id; give SA-Z.json")
        self._records, left_out = {}, []
        for key, record in content.items():
            photo = self._photo(key, record)
            if photo is None or not os.path.isfile(photo):  # Path.is_file raises for a name that is too long
                left_out.append(LeftOut(key, f"{photo or self.path}: no such photo"))
            else:
                self._records[key] = record
        self._keys = list(self._records)
        self.left_out = tuple(left_out)
        check_left_out("sa_z", self.left_out, len(content), on_error)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        photo = self._photo(self.key(index), self._records[self.key(index)])
        image, layout = read_stored_photo(photo), self.annotation(index).layout
        if image.shape[:2] != layout.size:
            raise SampleError(f"{photo}: it is {in_words(image.shape)}, but its masks are {in_words(layout.size)}")
        return Sample(image, layout)

    def key(self, index: int) -> str:
        """Return the id of the image."""
        return self._keys[index]

    def annotation(self, index: int) -> Annotation:
        key = self.key(index)
        return self._record(key, self._records[key]).annotation()

    def photo_digest(self, index: int) -> str:
        """Return "": SA-1B's photos never change."""
        return ""

    def fingerprint(self) -> str:
        """Return a digest of the records in use."""
        about = repr([(key, self._records[key]) for key in self._keys])
        return hashlib.sha256(f"{self.regions} {about}".encode(errors="backslashreplace")).hexdigest()

    def _photo(self, key: str, record: object) -> Path | None:
        name = record.get("image_path") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        path = self.image_root / name
        return path if ".." not in path.parts and not Path(name).is_absolute() else None

    def _record(self, key: str, record: Mapping) -> Record:
        where = f"{self.path}: {key}"
        found = record.get("mask_annotation")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise SampleError(f"{where}: mask_annotation is {shown(found)}; write a list of regions")
        prompt = record.get("prompt")
        size = check_stored_photo(self._photo(key, record)) if self.regions == "boxes" else None
        masks = []
        for number, one in enumerate(found, start=1):
            check_count(where, len(found), size or (masks[0].shape if masks else (1, 1)))
            masks.append(self._mask(f"{where}: region {number}", one, size))
        stack, captions = stacked(where, masks, [one.get("caption") for one in found])
        if prompt is not None:
            stacked(where, masks[:1], [prompt])
        order = from_back_to_front(stack, _in_front(where, record.get("pred_order"), len(found)))
        return ordered(Record(key, stack.shape[1:], stack, captions, prompt), order)

    def _mask(self, where: str, region: Mapping, size: tuple[int, int] | None) -> np.ndarray:
        if size is not None:
            return draw_box(where, box_of(where, region.get("bbox"), "xywh", size), size)
        segmentation = region.get("segmentation")
        try:
            runs, own = decode_runs(where, segmentation if isinstance(segmentation, dict) else {})
        except LayoutError as error:
            raise SampleError(str(error)) from None
        return draw_runs(runs, own)


def _in_front(where: str, matrix: object, count: int) -> np.ndarray | None:
    """Read pred_order as bool [N, N]; None if the record has none. Raises SampleError."""
    if matrix is None:
        return None
    rows = matrix if isinstance(matrix, list) and len(matrix) == count else [None]
    if not all(isinstance(row, list) and len(row) == count for row in rows):
        raise SampleError(f"{where}: pred_order is no matrix of {count} x {count}; take it from SA-Z.json")
    return np.array([[value == 1 for value in row] for row in rows], bool)
