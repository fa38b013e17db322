"""Which images are still to be made: one job per image, finished ones left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.generate.options import Options
from seg2any.generate.recipe import BrokenImage, check_recipe_fits, differences, read_recipe
from seg2any.generate.survey import Surveyed, image_paths, panel_path
from seg2any.layout.checks import MAX_SEED
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process


@dataclass(frozen=True)
class Job:
    """One image: of which layout, from which seed, by which recipe, into which file."""

    layout: Surveyed
    seed: int
    path: Path
    recipe: dict

    @property
    def panel_path(self) -> Path:
        """Where --save_panels puts the picture beside the image."""
        return panel_path(self.path)


@dataclass(frozen=True)
class Plan:
    """Of one process: jobs to do, jobs whose image is there already, and remarks about the latter."""

    to_do: tuple[Job, ...]
    finished: tuple[Job, ...]
    remarks: tuple[str, ...]


def make_plan(layouts: Iterable[Surveyed], options: Options, shared_recipe: dict, process: Process = ALONE) -> Plan:
    """Compare what is asked for with what is in the output folder. Raises UserError for recipes and names that do not
    fit."""
    to_do, finished, remarks = [], [], []
    for job in own_jobs(list(_jobs(layouts, options, shared_recipe)), options.batch_size, process):
        if job.path.is_dir():
            raise UserError(f"{job.path}: is a folder, and an image is to be called so; move it away")
        remark = None if options.overwrite else _look_at(job)
        if options.overwrite or not job.path.exists() or remark == BROKEN:
            check_recipe_fits(job.recipe, job.path)
            to_do.append(job)
        else:
            finished.append(job)
        if remark:
            remarks.append(f"{job.path}: {remark}")
    return Plan(tuple(to_do), tuple(finished), tuple(remarks))


def own_jobs(jobs: Sequence[Job], batch_size: int, process: Process) -> list[Job]:
    """The share of a process: whole batches of those that one process would make. It depends on nothing that other
    processes do meanwhile, so no image is made twice or left out."""
    own = {job.path for batch in process.share(list(batches(jobs, batch_size))) for job in batch}
    return [job for job in jobs if job.path in own]


def batches(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Jobs in groups of up to `batch_size` whose masks have one size, sizes in the order they first appear."""
    by_size: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        by_size.setdefault(job.layout.report.mask_size, []).append(job)
    for same in by_size.values():
        remaining = iter(same)
        while batch := list(itertools.islice(remaining, batch_size)):
            yield batch


BROKEN = "is not a whole image, so it is made again"


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
        },
        "seed": seed,
        "size": list(report.image_size),
        **shared_recipe,
    }


def _look_at(job: Job) -> str | None:
    """A remark about the file that a job would write, if there is one worth a remark."""
    if not job.path.exists():
        return None
    try:
        recipe = read_recipe(job.path)
    except BrokenImage:
        return BROKEN
    if recipe is None:
        return "was not made by this program and is left alone; --overwrite replaces it"
    if changed := differences(recipe, job.recipe):
        return f"was made with another {', '.join(changed[:4])} and is left alone; --overwrite makes it again"
    return None
