"""Check files of SA-1B: a single file, or a folder against the annotation file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.sacap.report import Meter, Problem, progress_bar, run_tasks
from seg2any.data.sacap.table import Annotations, Images
from seg2any.layout.document import decode_json
from seg2any.layout.images import ImageError, decode_roughly, opened_image
from seg2any.layout.rle import decode_runs
from seg2any.system.errors import UserError, shown

IMAGES_PER_JOB = 500  # smaller tasks than groups, so that all processes end at about the same time
# A part of a file that never arrived is zeros. No JPEG contains so many: at 2 bits or more per block they would be
# 65,536 blocks without any detail.
HOLE = bytes(16384)


class Broken(UserError):
    """A file is damaged. The message says how, without the file's name."""


def check_jpeg(data: bytes) -> tuple[int, int]:
    """Return (height, width) of a JPEG. Raises Broken unless it decodes to its end."""
    if not data:
        raise Broken("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about size, which is checked here
            with opened_image(io.BytesIO(data), "get it again", ("JPEG",)) as image:
                height, width = decode_roughly(image)
    except ImageError as error:
        raise Broken(str(error)) from None
    if HOLE in data:
        raise Broken(f"the file has a hole of {len(HOLE)} zeros or more")
    return height, width


def check_json(data: bytes, size: tuple[int, int], wanted: Set[int]) -> None:
    """Check the json beside an image of `size` (height, width). Raises Broken.

    It has to parse, to state this size, and to have every `wanted` annotation with run lengths that cover exactly this
    size.
    """
    try:
        content = decode_json(data)
        image, annotations = content["image"], content["annotations"]
        stated = (image["height"], image["width"])
        named = [annotation["id"] for annotation in annotations if annotation["id"] in wanted]
        by_id = {annotation["id"]: annotation["segmentation"] for annotation in annotations}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Broken(f"not a json of SA-1B ({type(error).__name__}: {shown(str(error))})") from None
    if stated != size:
        raise Broken(
            f"the json describes an image of {shown(stated[1])}x{shown(stated[0])}, the jpg has {size[1]}x{size[0]}"
        )
    if missing := sorted(wanted - by_id.keys()):
        raise Broken(f"the json lacks {len(missing)} of the {len(wanted)} annotations, among them id {missing[0]}")
    if len(named) > len(wanted):
        raise Broken("the json has an annotation twice")
    for anno_id in sorted(wanted):
        if not isinstance(by_id[anno_id], dict):
            raise Broken(f"annotation {anno_id} has no run lengths")
        try:
            _, mask_size = decode_runs(f"annotation {anno_id}", by_id[anno_id])
        except UserError as error:
            raise Broken(str(error)) from None
        if mask_size != size:
            raise Broken(f"annotation {anno_id} is {mask_size[1]}x{mask_size[0]}, the image {size[1]}x{size[0]}")


@dataclass(frozen=True, eq=False)
class Job:
    """Check `images` in `folder`."""

    folder: Path
    images: Images


def verify(annotations: Annotations, chosen: np.ndarray, root: Path, workers: int) -> list[Problem]:
    """Read all files of the images where bool [n] `chosen`; list one problem per bad file."""
    jobs = []
    for group, rows in annotations.by_group(chosen):
        for start in range(0, len(rows), IMAGES_PER_JOB):
            jobs.append(Job(root / group, annotations.images(group, rows[start : start + IMAGES_PER_JOB])))
    problems = []
    with progress_bar("verify", int(chosen.sum())) as bar:
        for _, found in run_tasks(verify_images, jobs, workers, bar):
            problems += found
    return problems


def verify_images(job: Job, meter: Meter) -> list[Problem]:
    """Check the images of one task, in a worker process."""
    problems = []
    for i in range(len(job.images)):
        if meter.stopped:
            break
        size = None
        for name in job.images.files(i):
            try:
                data = (job.folder / name).read_bytes()
                meter.add(0, len(data))
                if name == job.images.names[i]:
                    size = check_jpeg(data)
                elif size is not None:  # the json is checked against the size of the jpg
                    check_json(data, size, job.images.wanted(i))
            except FileNotFoundError:
                problems.append(Problem(job.images.group, job.images.names[i], name, "missing", True))
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                problems.append(Problem(job.images.group, job.images.names[i], name, reason, False))
            except Broken as error:
                problems.append(Problem(job.images.group, job.images.names[i], name, str(error), False))
        meter.add(1, 0)
    return problems


def whole_rows(annotations: Annotations, chosen: np.ndarray, problems: list[Problem]) -> np.ndarray:
    """Return bool [n]: the rows of `chosen` whose image has no problem."""
    bad = {(problem.group, problem.image) for problem in problems}
    whole = chosen.copy()
    for row in np.flatnonzero(chosen):
        whole[row] = (annotations.groups[annotations.codes[row]], annotations.names[row]) not in bad
    return whole


def delete_broken(root: Path, problems: list[Problem]) -> int:
    """Remove both files of every image with a broken one, and return the number of images.

    Either of the two may be the wrong one.
    """
    images = {(problem.group, problem.image) for problem in problems if not problem.missing}
    for group, name in images:
        path = root / group / name
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    return len(images)
