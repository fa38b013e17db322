"""COCO-MIG (arXiv 2402.05408): boxes of COCO, each with a colour that was drawn by lot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seg2any.data.dataset import Annotation, Sample, SampleError
from seg2any.data.layout_sets.records import Record, box_of, check_count, draw_box, from_back_to_front, ordered, stacked
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.limits import bounded_bytes, limits
from seg2any.system.yaml_text import parse_yaml

CONFIGS = 4  # whose size the file may have


class COCOMIGDataset:
    """Entries of the benchmark's yaml file: prompt -> caption -> boxes as shares of the image; no photos.

    A prompt names two to six things; `levels` chooses how many. Masks are drawn on `side` x `side` pixels. Things have
    no order in the file; smaller boxes lie in front (a reading of ours). The colours were drawn by lot, so a photo of
    the boxes would show others, and there is none.
    """

    without_photos = True

    def __init__(
        self, annotation_path: Path, side: int = 512, levels: tuple[int, ...] = (2, 3, 4, 5, 6), on_error: str = "skip"
    ):
        self.path, self.size = Path(annotation_path), (side, side)
        self._records: list[Record] = []
        left_out = []
        entries = _entries(self.path)
        for number, (prompt, entry) in enumerate(entries.items()):
            key = f"mig_{number:04d}"
            try:
                record = self._record(key, prompt, entry)
            except SampleError as error:
                left_out.append(LeftOut(key, str(error)))
                continue
            if len(record.captions) in levels:
                self._records.append(record)
        self.left_out = tuple(left_out)
        check_left_out("coco_mig", self.left_out, len(self._records) + len(left_out), on_error)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        raise SampleError(f"{self.path}: COCO-MIG has no photos; it tests layouts, and nothing can be trained on it")

    def key(self, index: int) -> str:
        """Return mig_ and the number of the entry in the file."""
        return self._records[index].key

    def annotation(self, index: int) -> Annotation:
        return self._records[index].annotation()

    def photo_digest(self, index: int) -> str:
        return ""

    def fingerprint(self) -> str:
        """Return a digest of all prompts, captions and boxes."""
        return hashlib.sha256("\n".join(record.digest() for record in self._records).encode()).hexdigest()

    def _record(self, key: str, prompt: object, entry: object) -> Record:
        where = f"{self.path}: {shown(prompt)}"
        if not isinstance(entry, Mapping):
            raise SampleError(f"{where}: is {shown(entry)}; write boxes by caption")
        captions, masks = [], []
        for caption, boxes in entry.items():
            if caption == "coco_id":
                continue
            if not isinstance(boxes, list):
                raise SampleError(f"{where}: {shown(caption)} has {shown(boxes)}; write a list of boxes")
            check_count(where, len(captions) + len(boxes), self.size)
            for box in boxes:
                captions.append(caption)
                masks.append(draw_box(where, box_of(where, box, "xyxy", self.size), self.size))
        stack, texts = stacked(where, masks, captions)
        stacked(where, masks[:1], [prompt])
        return ordered(Record(key, self.size, stack, texts, prompt), from_back_to_front(np.asarray(stack)))


def _entries(path: Path) -> Mapping:
    try:
        most = CONFIGS * limits().yaml_bytes
        content = parse_yaml(bounded_bytes(path, most), most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the benchmark's yaml file") from None
    except ValueError as error:
        told = f"is not valid YAML ({brief(error)})"
        raise UserError(f"{path}: {told}; download bench_file/mig_bench_anno.yaml again") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no entries; give the benchmark's yaml file")
    return content
