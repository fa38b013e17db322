"""A folder of images against the annotation file: what is missing, what is broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.sacap.check import Broken, check_jpeg, check_json
from seg2any.data.sacap.report import Problem
from seg2any.data.sacap.table import Annotations, Images
from seg2any.data.sacap.workers import Meter, progress_bar, run_tasks

IMAGES_PER_JOB = 500  # more and smaller tasks than groups: all processes end at the same time


@dataclass(frozen=True, eq=False)
class Job:
    """Look at `images` in `folder`."""

    folder: Path
    images: Images


def verify(annotations: Annotations, chosen: np.ndarray, root: Path, workers: int) -> list[Problem]:
    """Read every file of the images where bool [n] `chosen`. At most one problem per file."""
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
    """The work of one process."""
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
                elif size is not None:  # without it there is nothing to check the json against
                    check_json(data, size, job.images.wanted(i))
            except FileNotFoundError:
                problems.append(Problem(job.images.group, job.images.names[i], name, "not there", True))
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                problems.append(Problem(job.images.group, job.images.names[i], name, reason, False))
            except Broken as error:
                problems.append(Problem(job.images.group, job.images.names[i], name, str(error), False))
        meter.add(1, 0)
    return problems


def whole_rows(annotations: Annotations, chosen: np.ndarray, problems: list[Problem]) -> np.ndarray:
    """bool [n]: the rows of `chosen` whose image has no problem."""
    bad = {(problem.group, problem.image) for problem in problems}
    whole = chosen.copy()
    for row in np.flatnonzero(chosen):
        whole[row] = (annotations.groups[annotations.codes[row]], annotations.names[row]) not in bad
    return whole


def delete_broken(root: Path, problems: list[Problem]) -> int:
    """Remove both files of every image with a broken one: it is not known which of the two is wrong. Returns how many
    images."""
    images = {(problem.group, problem.image) for problem in problems if not problem.missing}
    for group, name in images:
        path = root / group / name
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    return len(images)
