"""Carry out `segment --sweep`: print blocks x noise levels with mIoU, and draw them as a heat map."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seg2any.commands.segment_flow import open_session
from seg2any.commands.segment_folder import find_photos, machine_of
from seg2any.data.pictures import read_photo
from seg2any.generate.folder import open_folder
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.segment.attention import AttentionSegmenter
from seg2any.segment.probe import ProbeSettings
from seg2any.segment.sweep import Swept, sweep
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.processes import Process

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BACKGROUND = "background"
CELL = 64  # pixels of a cell of the heat map


def run_sweep(given: Namespace) -> None:
    """Measure all blocks, or those of --blocks, on images with known layouts. Raises UserError."""
    background = given.background or BACKGROUND
    samples = [known_sample(photo, layout, background) for photo, layout in pairs(given.images, given.sweep)]
    open_folder(given.output_path)
    pipe = open_session(given, machine_of(given, Process.of(os.environ))).pipeline
    known = pipe.base.probing
    if given.side is None and known is None:
        raise UserError("--side: nobody has measured this model; give the edge of the images that it makes best")
    settings = ProbeSettings(
        tuple(given.blocks or range(pipe.base.geometry.n_blocks)),
        given.side or known.side,
        seeds=tuple(given.seeds),
        guidance_scale=given.guidance_scale,
        text_tokens=given.text_tokens,
    )
    levels = LEVELS if given.noise_level is None else (given.noise_level,)

    def at(level: float) -> AttentionSegmenter:
        return AttentionSegmenter(pipe.base, pipe.scheduler, replace(settings, noise_level=level))

    found = sweep(samples, background, levels, at)
    path = given.output_path / "sweep.png"
    with atomic_write(path) as temporary:
        heat_map(found).save(temporary)
    print(found.table(), f"heat map: {path}", sep="\n")


def pairs(images: Iterable[Path], layouts: Path) -> list[tuple[Path, Path]]:
    """Pair photos with layouts of their names. Raises UserError for a photo without one."""
    of_name = {path.stem: path for path in Layout.find(layouts)}
    photos = find_photos(images)
    if lacking := [photo for photo in photos if photo.stem not in of_name]:
        raise UserError(f"--sweep {layouts}: has no layout called {lacking[0].stem}, as {lacking[0]}; add it")
    return [(photo, of_name[photo.stem]) for photo in photos]


def known_sample(photo: Path, path: Path, background: str) -> tuple[np.ndarray, Layout]:
    """Read a photo and its layout, with masks of the photo's size. Raises UserError for a caption used twice."""
    image, layout = read_photo(photo), Layout.read(path)
    names = [*layout.captions, background]
    if twice := next((text for number, text in enumerate(names) if text in names[:number]), None):
        raise UserError(f"{path}: the caption {twice!r} names two regions, or the background; leave the image out")
    masks = resize_masks(layout.visible, image.shape[:2])
    return image, Layout(masks, layout.captions, name=photo.stem, overlap="share")


def heat_map(found: Swept) -> Image.Image:
    """Draw the mIoU of every block (column) and noise level (row), brighter where it is greater."""
    rows, columns = found.iou.shape
    picture = Image.new("RGB", ((columns + 1) * CELL, (rows + 1) * CELL), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=CELL // 4)
    low, high = found.iou.min(), found.iou.max()
    for row, column in np.ndindex(rows, columns):
        share = (found.iou[row, column] - low) / max(high - low, 1e-9)
        place = ((column + 1) * CELL, (row + 1) * CELL)
        fill = (round(40 + 215 * share), round(30 + 170 * share), round(90 - 60 * share))
        draw.rectangle((*place, place[0] + CELL - 2, place[1] + CELL - 2), fill=fill)
        _write(draw, font, place, f"{found.iou[row, column]:.2f}", "black" if share > 0.5 else "white")
    for column, block in enumerate(found.blocks, start=1):
        _write(draw, font, (column * CELL, 0), f"{block}", "black")
    for row, level in enumerate(found.levels, start=1):
        _write(draw, font, (0, row * CELL), f"{level:g}", "black")
    return picture


def _write(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, place: tuple[int, int], text: str, fill: str):
    draw.text((place[0] + CELL / 2, place[1] + CELL / 2), text, fill, font, anchor="mm")
