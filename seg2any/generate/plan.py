"""Plan a run of `infer.py`: one job per image, finished images left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.generate.folder import Found, State, look_at
from seg2any.generate.options import Options
from seg2any.generate.recipe import check_recipe_fits
from seg2any.generate.survey import Surveyed, image_paths, panel_path
from seg2any.layout.checks import MAX_SEED
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process


@dataclass(frozen=True)
class Job:
    """One image to make: its layout, seed, recipe and file."""

    layout: Surveyed
    seed: int
    path: Path
    recipe: dict

    @property
    def panel_path(self) -> Path:
        """Path of the picture that --save_panels writes beside the image."""
        return panel_path(self.path)


@dataclass(frozen=True)
class Plan:
    """The jobs of one process: to do and finished; and remarks about files in the folder."""

    to_do: tuple[Job, ...]
    finished: tuple[Job, ...]
    remarks: tuple[str, ...]


def make_plan(layouts: Iterable[Surveyed], options: Options, shared_recipe: dict, process: Process = ALONE) -> Plan:
    """Compare the images asked for with those in the output folder.

    Raises UserError for recipes that a format cannot hold, and for folders under the name of an image.
    """
    to_do, finished, remarks = [], [], []
    for job in own_jobs(list(_jobs(layouts, options, shared_recipe)), options.batch_size, process):
        if job.path.is_dir():
            raise UserError(f"{job.path}: is a folder, and an image is to be called so; move it away")
        found = look_at(job.path, lambda job=job: job.recipe)
        if options.no_recipe and found.state is State.FOREIGN:
            found = Found(State.FINISHED)  # what such a run has made is known by its name only
        if options.overwrite or found.is_to_be_made:
            if not options.no_recipe:
                check_recipe_fits(job.recipe, job.path)
            to_do.append(job)
        else:
            finished.append(job)
        if not options.overwrite and (remark := _remark(found)):
            remarks.append(f"{job.path}: {remark}")
    return Plan(tuple(to_do), tuple(finished), tuple(remarks))


def own_jobs(jobs: Sequence[Job], batch_size: int, process: Process) -> list[Job]:
    """Return the share of a process: whole batches of those that one process would make.

    The share depends on the number of processes only, not on their progress: no image is made twice or left out.
    """
    own = {job.path for batch in process.share(list(batches(jobs, batch_size))) for job in batch}
    return [job for job in jobs if job.path in own]


def batches(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Yield groups of up to `batch_size` jobs with masks of one size, in the order of the jobs."""
    by_size: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        by_size.setdefault(job.layout.report.mask_size, []).append(job)
    for same in by_size.values():
        remaining = iter(same)
        while batch := list(itertools.islice(remaining, batch_size)):
            yield batch


def _jobs(layouts: Iterable[Surveyed], options: Options, shared_recipe: dict) -> Iterator[Job]:
    for layout in layouts:
        own = layout.report.seed if layout.report.seed is not None else 0
        first = own if options.seed is None else options.seed
        for n, path in enumerate(image_paths(layout.report.name, options)):
            seed = (first + n) % (MAX_SEED + 1)
            yield Job(layout, seed, path, _recipe(layout, seed, shared_recipe))


def _recipe(layout: Surveyed, seed: int, shared_recipe: dict) -> dict:
    report = layout.report
    return {
        "layout": {
            "sha256": layout.digest,
            "name": report.name,
            "caption": report.caption.text if report.caption else None,
            "captions": [region.caption.text for region in report.regions],
            # only where it changes the image, so that images made before it existed stay finished
            **({"overlap": report.overlap} if report.overlap else {}),
        },
        "seed": seed,
        "size": list(report.image_size),
        **shared_recipe,
    }


def _remark(found: Found) -> str | None:
    if found.state is State.BROKEN:
        return "is not a whole image, so it is made again"
    if found.state is State.FOREIGN:
        return "was not made by this program and is left alone; --overwrite replaces it"
    if found.state is State.OTHER:
        return f"was made with another {', '.join(found.differs)} and is left alone; --overwrite makes it again"
    return None
