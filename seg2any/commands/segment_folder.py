"""Carry out `segment`: find the photos, leave out finished ones, write layouts, overlays and a report."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from seg2any.commands.segment_captions import captions_identity, how_to_train, open_captions
from seg2any.commands.segment_methods import MethodModule
from seg2any.commands.segment_prompt import prompt_of
from seg2any.data.dataset import SampleError
from seg2any.data.pictures import SUFFIXES, check_photo, photo_digest, read_photo
from seg2any.generate.choices import LIBRARIES, Machine
from seg2any.generate.folder import State, look_at, open_folder
from seg2any.generate.recipe import MADE, BrokenImage, read_recipe, save_image
from seg2any.layout import Layout
from seg2any.layout.carried import fitted
from seg2any.layout.convert import write_coco
from seg2any.layout.draw import overlay_picture
from seg2any.segment.segmenter import Prompt, Segmenter
from seg2any.system.console import warn
from seg2any.system.device import choose_device, device_name
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, check_name
from seg2any.system.patience import NoAnswer
from seg2any.system.precision import choose_dtype
from seg2any.system.processes import Process
from seg2any.system.provenance import versions

if TYPE_CHECKING:
    from seg2any.annotate.draft import Draft

OVERLAYS, REPORT = "overlays", "report.md"
SMALLEST = 16  # pixels of an edge: a token of FLUX.1


@dataclass(frozen=True)
class Asked:
    """A prompt, and a recipe that identifies it, the method's model and the flags that change what is found."""

    prompt: Prompt
    recipe: dict


@dataclass(frozen=True)
class Job:
    """One photo to find regions in.

    path     of its layout
    overlay  picture that is written last and holds the recipe, so that a layout with it is complete
    """

    photo: Path
    path: Path
    overlay: Path
    recipe: dict


def run_folder(given: Namespace, method: MethodModule) -> None:
    """Find the regions of all photos that this process has to do.

    Photos that cannot be used are named, and others go on. Raises UserError if some could not.
    """
    process = Process.of(os.environ)
    machine = machine_of(given, process)
    asked = asked_of(given, method, machine)
    photos = find_photos(given.images)
    refuse_places(photos, given.output_path)
    jobs, problems = make_jobs(process.share(photos), given, asked)
    todo, remarks = unfinished(jobs, given.overwrite)
    warn(remarks)
    if todo:
        open_folder(given.output_path)
        print(f"{process}{len(todo)} images to segment on {machine}, {len(jobs) - len(todo)} are done", flush=True)
        write_captions = open_captions(given)
        segmenter = method.open_segmenter(given, machine)
        find = partial(found_in, segmenter=segmenter, prompt=asked.prompt, write_captions=write_captions)
        problems += carry_out(todo, find, given.format, process.is_first)
    if jobs:
        print(f"{process}report: {write_report(given.output_path, method.SCORE)}")
        if given.captions and (command := how_to_train([job.photo for job in jobs], given.output_path)):
            print(f"{process}train: {command}")
    if problems:
        raise UserError("\n".join(problems))


def machine_of(given: Namespace, process: Process) -> Machine:
    """Choose device and precision. Raises UserError."""
    device = choose_device(device_name(process, given.device))
    return Machine(device, choose_dtype(given.weight_dtype, device))


def asked_of(given: Namespace, method: MethodModule, machine: Machine) -> Asked:
    """Read the prompt and identify everything that the result depends on. Raises UserError."""
    prompt, known = prompt_of(given), method.identity(given, machine)
    asked = {name: getattr(given, name) for name in ("method", "points", "describe", "ask", "format")}
    flags = {**known.get("segment", {}), **asked, "phrases": prompt.phrases, "categories": prompt.categories}
    return Asked(
        prompt,
        {
            **known,
            "segment": flags,
            **captions_identity(given),
            "weight_dtype": machine.precision,
            "device": machine.device.type,
            "versions": versions(LIBRARIES),
        },
    )


def find_photos(places: Iterable[Path]) -> list[Path]:
    """List the photos: files as given, and those of folders, sorted by name.

    Raises UserError for a place without photos, and for two photos whose layouts would have one name.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
            if not inside:
                raise UserError(f"{place}: holds no photo; give a folder of {', '.join(SUFFIXES)}")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"{place}: no such file or folder; give a photo, or a folder of photos")
    first: dict[str, Path] = {}
    for path in found:
        if first.setdefault(path.stem.casefold(), path) != path:
            raise UserError(f"{first[path.stem.casefold()]} and {path} would both write {path.stem}; rename one")
    return list(dict.fromkeys(found))


def refuse_places(photos: Iterable[Path], output: Path) -> None:
    """Raise UserError if layouts would be written beside the photos, whose names they have."""
    if output.resolve() in {photo.parent.resolve() for photo in photos}:
        raise UserError(f"--output_path {output}: is where the images are; choose another folder")


def make_jobs(photos: Iterable[Path], given: Namespace, asked: Asked) -> tuple[list[Job], list[str]]:
    """Return a job for each photo that can be used, and a line for each that cannot."""
    jobs, problems = [], []
    for photo in photos:
        suffix = ".npz" if given.format == "npz" else ".json"
        path, overlay = given.output_path / f"{photo.stem}{suffix}", given.output_path / OVERLAYS / f"{photo.stem}.png"
        try:
            check_name(overlay)
            height, width = check_photo(photo)
            if min(height, width) < SMALLEST:
                raise UserError(f"{photo}: is {width}x{height}, smaller than a token; give {SMALLEST} pixels or more")
            recipe = {"photo": {"name": photo.name, "sha256": photo_digest(photo)}, **asked.recipe}
        except UserError as error:
            problems.append(str(error))
        else:
            jobs.append(Job(photo, path, overlay, recipe))
    return jobs, problems


def unfinished(jobs: Sequence[Job], overwrite: bool) -> tuple[list[Job], list[str]]:
    """Return the jobs to do, and remarks about files that are left alone."""
    todo, remarks = [], []
    for job in jobs:
        found = look_at(job.overlay, lambda job=job: job.recipe)
        if overwrite or found.is_to_be_made or (found.state is State.FINISHED and not job.path.exists()):
            todo.append(job)
        elif found.state is not State.FINISHED:
            what = f"was made with another {', '.join(found.differs)}" if found.differs else "is not this program's"
            remarks.append(f"{job.overlay}: {what} and is left alone; --overwrite replaces it with its layout")
    return todo, remarks


def carry_out(jobs: Sequence[Job], find: Callable[[Path, np.ndarray], Layout], form: str, shown_bar: bool) -> list[str]:
    """Find and write the regions of every job; return a line for each photo that is damaged or got no captions."""
    problems = []
    for job in tqdm(jobs, desc="images", unit="image", disable=not shown_bar):
        try:
            image = read_photo(job.photo)
        except UserError as error:
            problems.append(str(error))
            continue
        try:
            found = find(job.photo, image)
        except SampleError as error:
            problems.append(str(error))
            continue
        except NoAnswer as error:
            problems.append(f"{job.photo}: got no captions: {error}; start again to ask again")
            continue
        warn(write(job, found, image, form))
    return problems


def found_in(
    photo: Path,
    image: np.ndarray,
    segmenter: Segmenter,
    prompt: Prompt,
    write_captions: Callable[[Draft], None] | None,
) -> Layout:
    """Find the regions of a photo, with the method's captions or those of another source.

    Raises SampleError and NoAnswer for captions that the source lacks.
    """
    found = replace(segmenter.segment(image, prompt), name=photo.stem)
    if write_captions is None:
        return found
    from seg2any.annotate.layouts import captioned  # late: it takes a second to import

    return captioned(found, photo, image, write_captions)


def write(job: Job, found: Layout, image: np.ndarray, form: str) -> list[str]:
    """Write the layout, then its overlay; return remarks about what was not found or cannot be held."""
    job.overlay.unlink(missing_ok=True)
    if found.masks.any():
        layout, remarks = fitted(found, form, {})
    else:
        scores = None if found.scores is None else found.scores[:0]
        layout = replace(found, masks=found.masks[:0], captions=(), scores=scores)
        remarks = [f"{job.photo}: {', '.join(['no region was found', *found.notes])}; the layout is empty"]
    (write_coco if form == "coco" else Layout.write)(layout, job.path)
    about = [
        {"caption": text, "score": round(float(score), 3), "share": round(float(mask.mean()), 4)}
        for text, score, mask in zip(found.captions, found.scores, found.masks, strict=True)
    ]
    picture = overlay_picture(layout, image.shape[:2], Image.fromarray(image))
    save_image(picture, {**job.recipe, MADE: {"source": found.source, "regions": about}}, job.overlay)
    return remarks


def write_report(folder: Path, score: str) -> Path:
    """Write the regions of all finished layouts of a folder as a table, and a line about scores; return the file."""
    rows = [row for path in sorted((folder / OVERLAYS).glob("*.png")) for row in _rows(path)]
    head = ["| image | region | score | share of the image |", "|---|---|---|---|"]
    text = "\n".join(["# Regions that were found", "", *head, *rows, "", score, ""])
    with atomic_write(folder / REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / REPORT


def _rows(overlay: Path) -> Iterator[str]:
    try:
        recipe = read_recipe(overlay)
    except BrokenImage:
        return
    regions = ((recipe or {}).get(MADE) or {}).get("regions", [])
    for one in regions or [{"caption": "no region", "score": 0, "share": 0}]:
        caption = str(one["caption"]).replace("|", "\\|").replace("\n", " ")
        yield f"| {overlay.stem} | {caption} | {one['score']:.2f} | {100 * one['share']:.1f} % |"
