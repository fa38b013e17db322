"""COCO-MIG (arXiv 2402.05408): boxes of COCO, each with a colour that was drawn by lot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from seg2any.data.dataset import Annotation, Sample, SampleError
from seg2any.data.layout_sets.records import Record, box_of, draw_box, from_back_to_front, ordered, stacked
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


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
            for box in boxes:
                captions.append(caption)
                masks.append(draw_box(where, box_of(where, box, "xyxy", self.size), self.size))
        stack, texts = stacked(where, masks, captions)
        stacked(where, masks[:1], [prompt])
        return ordered(Record(key, self.size, stack, texts, prompt), from_back_to_front(np.asarray(stack)))


def _entries(path: Path) -> Mapping:
    try:
        if path.stat().st_size > (most := limits().json_bytes):
            raise UserError(f"{path}: is larger than {most >> 20} MiB; give the benchmark's yaml file")
        content = yaml.load(path.read_bytes(), LOADER)  # noqa: S506 a safe loader
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the benchmark's yaml file") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{path}: is not valid YAML; download bench_file/mig_bench_anno.yaml again") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no entries; give the benchmark's yaml file")
    return content
