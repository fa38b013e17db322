"""Write a set as training reads it: photos with the JSON of SA-1B beside them, and the parquet of SACap-1M."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seg2any.annotate.draft import Draft
from seg2any.annotate.nested import area, box
from seg2any.annotate.stages import Outcome
from seg2any.data.dataset import SampleError
from seg2any.data.pictures import is_seen_as_stored
from seg2any.layout.images import LOSSY, opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

RAW, TABLE = "raw", "annotations.parquet"
COPY, LINK = "copy", "link"
QUALITY = 95  # of a JPEG whose pixels had to change
ROWS = 4096  # written at once
SCHEMA = pa.schema(
    {
        "imagename": pa.string(),
        "image_group": pa.string(),
        "caption": pa.string(),
        "segments_info": pa.list_(pa.struct({"anno_id": pa.int64(), "caption": pa.string()})),
        "source": pa.string(),
        "aesthetic": pa.float32(),
        "original": pa.string(),
    }
)


def write_files(draft: Draft, root: Path, photos: str) -> None:
    """Write the photo and its JSON below `root`.

    photos  COPY, or LINK for a second name of the same file

    Training reads pixels as they are stored, so a photo that EXIF turns, or that is transparent or of another colour
    space, is written anew as people see it. Raises SampleError, and UserError if links are impossible.
    """
    source, folder = Path(draft.photo.path), root / RAW / draft.photo.group
    suffix = source.suffix.lower()
    if is_seen_as_stored(source):
        (_link if photos == LINK else _copy)(source, folder / f"{draft.photo.name}{suffix}")
    else:
        suffix = _write_anew(draft, source, folder)
    draft.file = f"{draft.photo.name}{suffix}"
    with atomic_write(folder / f"{draft.photo.name}.json") as temporary:
        temporary.write_text(json.dumps(_document(draft)), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    try:
        with open(source, "rb") as file, atomic_write(target) as temporary, open(temporary, "wb") as copy:
            shutil.copyfileobj(file, copy)
    except FileNotFoundError:
        raise SampleError(f"{source}: the photo is gone; put it there again") from None


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        os.link(source.resolve(), temporary)
        os.replace(temporary, target)
    except FileNotFoundError:
        raise SampleError(f"{source}: the photo is gone; put it there again") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be a link to {source} ({error.strerror}); use --photos copy") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_anew(draft: Draft, source: Path, folder: Path) -> str:
    """Write the photo as people see it; return the suffix."""
    with opened_image(source) as image:
        suffix = ".jpg" if image.format in LOSSY else ".png"
    options = {"quality": QUALITY, "subsampling": 0} if suffix == ".jpg" else {}
    with atomic_write(folder / f"{draft.photo.name}{suffix}") as temporary:
        Image.fromarray(draft.image).save(temporary, **options)
    return suffix


def _document(draft: Draft) -> dict:
    """Return the JSON of SA-1B, with the source of masks and captions."""
    height, width = draft.size
    entries = []
    for region, runs in zip(draft.regions, draft.runs(), strict=True):
        entry = {"id": region.id, "segmentation": {"size": [height, width], "counts": region.counts}}
        entry |= {"bbox": box(runs, height), "area": area(runs), "source": draft.masks_by}
        entries.append(entry if region.score is None else entry | {"predicted_iou": round(region.score, 4)})
    image = {"width": width, "height": height, "file_name": draft.file, "source": draft.source}
    return {"image": image, "annotations": entries}


def write_table(root: Path, outcomes: Iterable[Outcome]) -> int:
    """Write the parquet with one row for each kept photo; return the number of rows."""
    outcomes, count = iter(outcomes), 0
    with atomic_write(root / TABLE) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        while part := list(islice(outcomes, ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(one) for one in part], SCHEMA))
            count += len(part)
    return count


def _row(outcome: Outcome) -> dict:
    record = outcome.record
    segments = [{"anno_id": number, "caption": caption} for number, caption in record["regions"]]
    plain = {name: record[name] for name in ("imagename", "image_group", "caption", "source", "aesthetic")}
    return {**plain, "segments_info": segments, "original": outcome.key}


def files_of(root: Path, outcome: Outcome) -> tuple[Path, Path]:
    """Return the photo and the JSON of a kept outcome."""
    photo = root / RAW / outcome.record["image_group"] / outcome.record["imagename"]
    return photo, photo.with_name(f"{outcome.record['name']}.json")
