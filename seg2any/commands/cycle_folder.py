"""Carry out `cycle`: find what lies in the folder, make the images, find regions again, write the page."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from seg2any.commands.segment_folder import find_photos, machine_of
from seg2any.commands.segment_methods import MethodModule
from seg2any.commands.segment_prompt import distinct
from seg2any.data.pictures import SUFFIXES
from seg2any.evaluation.cycle.loop import Loop, make_images, starts_of_layouts, starts_of_photos
from seg2any.evaluation.report.results import make_run
from seg2any.evaluation.runners.finish import finish, shown_table
from seg2any.generate.folder import open_folder
from seg2any.generate.model import known_adapter, known_model
from seg2any.generate.session import ImageOptions, Loading, Session
from seg2any.layout import Layout
from seg2any.layout.find import layout_files_in, only_json, pictures_of
from seg2any.segment.segmenter import Prompt
from seg2any.system.console import warn
from seg2any.system.errors import UserError
from seg2any.system.processes import Process


def run_cycle(given: Namespace, method: MethodModule) -> None:
    """Close the loop for everything in the folder. Raises UserError."""
    machine = machine_of(given, Process.of(os.environ))
    prompt = Prompt(phrases=distinct("--phrases", given.phrases)) if given.phrases else Prompt()
    layouts, photos = find_layouts_and_photos(given.folder)
    known = method.identity(given, machine)
    open_folder(given.output_path)
    starts = starts_of_layouts(layouts, photos)
    alone = [photo for photo in photos if photo.stem not in {start.key for start in starts}]
    segmenter = method.open_segmenter(given, machine)
    more, remarks = starts_of_photos(alone, segmenter, prompt)
    warn(remarks)
    starts += more
    if not starts:
        raise UserError(f"{given.folder}: no photo in it has a region, so there is nothing to close; give --phrases")
    session = Session.open(given.generator, machine.dtype, machine.device, Loading(given.generator_lora))
    session.show_progress(False)
    make_images(
        starts, session, ImageOptions(num_inference_steps=given.num_inference_steps), given.output_path, given.seed
    )
    loop = Loop(starts, segmenter, given.ask_by, given.output_path)
    results = loop.results()
    settings = {**known.get("segment", {}), "method": given.method, "ask_by": given.ask_by, "seed": given.seed}
    hashes = {"generator": known_model(given.generator), "generator_lora": known_adapter(given.generator_lora)}
    run = make_run(f"cycle, {given.method}", results, settings, hashes, machine.device)
    page = finish(run, given.output_path / "cycle.json", results[0].name, loop.gallery())
    print(shown_table(run), f"page with pictures: {page}", sep="\n")


def find_layouts_and_photos(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the layouts of a folder, and its pictures that are no mask of a layout. Raises UserError without any."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give one of layouts, photos, or both")
    layouts = Layout.find(folder) if layout_files_in(folder) else []
    files = [layout if layout.is_file() else only_json(layout) for layout in layouts]
    masks = {picture.resolve() for file in files for picture in pictures_of(file)}
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    photos = [path for path in pictures if path.resolve() not in masks]
    stems = [layout.stem for layout in layouts]
    if twice := next((stem for n, stem in enumerate(stems) if stem in stems[:n]), None):
        raise UserError(f"{folder}: has two layouts called {twice}; rename one")
    if not layouts and not photos:
        raise UserError(f"{folder}: holds neither layouts nor photos; give a folder with some")
    return layouts, find_photos(photos) if photos else []
