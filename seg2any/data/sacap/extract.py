"""Extract images and jsons from the tars, each checked before it gets its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seg2any.data.sacap.report import Meter, Problem, in_bytes, progress_bar, run_tasks
from seg2any.data.sacap.table import Annotations, Images
from seg2any.data.sacap.tars import Index, find_tars, index_tar, read_member
from seg2any.data.sacap.verify import Broken, check_jpeg, check_json
from seg2any.layout.images import ImageError, opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, remove_stale

SPARE_BYTES = 1 << 28  # kept free on the disk


@dataclass(frozen=True, eq=False)
class Job:
    """Extract `images` from `tar` into `folder`."""

    tar: Path
    folder: Path
    images: Images


def extract(
    annotations: Annotations, chosen: np.ndarray, tar_dirs: Sequence[Path], root: Path, workers: int
) -> list[Problem]:
    """Extract the images where bool [n] `chosen` to `root`/group/, and list problems.

    An image is a jpg and a json; files that exist are kept as they are. Raises UserError before anything is written if
    there is no tar or the disk is too small, and when the disk is full.
    """
    tars = find_tars(tar_dirs)
    problems, jobs, needed, done = [], [], 0, 0
    for group, rows in annotations.by_group(chosen):
        todo = rows[[not exists for exists in _exist(annotations.images(group, rows), root / group)]]
        done += len(rows) - len(todo)
        if len(todo) == 0:
            continue
        images = annotations.images(group, todo)
        if group in tars:
            jobs.append(Job(tars[group], root / group, images))
            needed += annotations.bytes(todo)
        else:
            reason = f"{group}.tar is not in {', '.join(map(str, tar_dirs))}"
            problems += [Problem(group, name, name, reason, True) for name in images.names]
    if problems and not jobs and not done:
        raise UserError(f"--tar_dir: it holds none of the {len({p.group for p in problems})} tars needed; see `plan`")
    _check_room(root, needed)
    with progress_bar(f"{len(jobs)} tars", int(chosen.sum()), done) as bar:
        for _, found in run_tasks(extract_tar, jobs, workers, bar):
            problems += found
    return problems


def extract_tar(job: Job, meter: Meter) -> list[Problem]:
    """Extract the images of one tar. Raises UserError if the disk cannot be written."""
    images = job.images
    try:
        index = index_tar(job.tar, {name for i in range(len(images)) for name in images.files(i)})
        with open(job.tar, "rb", buffering=0) as file:
            return _extract_images(job, index, file, meter)
    except OSError as error:  # about the tar itself; broken members and a full disk are handled below
        reason = f"{job.tar} cannot be read ({error.strerror or error})"
        return [Problem(images.group, name, name, reason, True) for name in images.names]


def _extract_images(job: Job, index: Index, file: BinaryIO, meter: Meter) -> list[Problem]:
    images, problems = job.images, []
    at = [index.members[name].offset if name in index.members else 0 for name in images.names]
    for i in np.argsort(at, kind="stable"):  # in the order of the tar
        if meter.stopped:
            break
        size = 0
        try:
            for name in images.files(i):  # the jpg first: the json is checked against it
                size += _extract_file(job, index, file, i, name)
        except (Missing, Broken) as error:
            problems.append(Problem(images.group, images.names[i], name, str(error), isinstance(error, Missing)))
        meter.add(1, size)
    return problems


class Missing(UserError):
    """A file is not in the tar."""


def _extract_file(job: Job, index: Index, file: BinaryIO, number: int, name: str) -> int:
    """Extract one file, and return the bytes written: 0 if it exists.

    Raises Missing and Broken.
    """
    path = job.folder / name
    if path.exists():
        return 0
    if name not in index.members:
        damage = f", which is {index.damage}; download it again" if index.damage else ""
        raise Missing(f"not in {job.tar.name}{damage}")
    try:
        data = read_member(file, index.members[name])
    except OSError as error:
        raise Broken(f"in {job.tar.name} {error.strerror or error}") from None
    if path.suffix == ".json":
        check_json(data, _size_there(job.folder / job.images.names[number]), job.images.wanted(number))
    else:
        check_jpeg(data)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); when it can, start again to go on") from None
    return len(data)


def _size_there(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header of a jpg on the disk."""
    try:
        with opened_image(path, "run verify --delete_broken first", ("JPEG",)) as image:
            return image.height, image.width
    except ImageError as error:
        raise Broken(f"{path.name} on the disk {error}") from None


def _exist(images: Images, folder: Path) -> list[bool]:
    """List which images have both files in `folder`; remove what killed writers left there."""
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return [False] * len(images)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); --output is a folder of folders") from None
    remove_stale(folder)
    return [names.issuperset(images.files(i)) for i in range(len(images))]


def _check_room(root: Path, needed: int) -> None:
    existing = next(path for path in [root.absolute(), *root.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free - SPARE_BYTES
    if needed > max(0, free):
        raise UserError(
            f"{root}: about {in_bytes(needed)} are needed, but {in_bytes(max(0, free))} are free; make room, choose "
            "another --output, or plan less (--limit); `plan --scan` knows the sizes exactly"
        )
