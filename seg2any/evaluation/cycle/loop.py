"""Close the loop over a folder: images out of masks, masks out of images, and how well both fit.

layouts  masks -> image -> masks            IoU of wanted and found regions
photos   image -> masks -> image -> masks   likewise, with the masks that were found in the photo
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seg2any.data.pictures import read_photo
from seg2any.evaluation.cycle.again import WAYS, Again, find_again
from seg2any.evaluation.metrics.item import REAL, Item
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.evaluation.runners.finish import Gallery
from seg2any.generate.session import ImageOptions, Session
from seg2any.layout import Layout
from seg2any.layout.images import load_image
from seg2any.segment.segmenter import Prompt, Segmenter
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

OF_LAYOUTS, OF_PHOTOS = "IoU of masks -> image -> masks", "IoU of image -> masks -> image"
LAYOUTS, IMAGES = "layouts", "images"  # folders below the output


@dataclass(frozen=True, eq=False)
class Start:
    """Where a loop starts.

    layout  of a file, or found in the photo
    photo   None where only a layout was given
    number  name of what the loop measures, OF_LAYOUTS or OF_PHOTOS
    """

    key: str
    layout: Layout
    photo: Path | None
    number: str


def starts_of_layouts(paths: Sequence[Path], photos: Sequence[Path]) -> list[Start]:
    """Start from layout files; a photo of a layout's name shows how well its masks are found in reality."""
    of_name = {path.stem: path for path in photos}
    found = []
    for path in paths:
        layout = Layout.read(path)
        if not layout.masks.any():
            raise UserError(f"{path}: has no region; leave it out")
        found.append(Start(path.stem, layout, of_name.get(path.stem), OF_LAYOUTS))
    return found


def starts_of_photos(photos: Iterable[Path], segmenter: Segmenter, prompt: Prompt) -> tuple[list[Start], list[str]]:
    """Start from photos, by the regions found in them; return a remark for each photo in which none was found."""
    found, remarks = [], []
    for path in tqdm(list(photos), "photos", leave=False):
        layout = replace(segmenter.segment(read_photo(path), prompt), name=path.stem, scores=None)
        kept = np.flatnonzero(layout.masks.any((1, 2)))
        if not len(kept):
            remarks.append(f"{path}: no region was found, so there is no image to make; it is left out")
            continue
        captions = tuple(layout.captions[n] for n in kept)
        words = replace(layout, masks=layout.masks[kept], captions=captions, caption=", ".join(captions))
        found.append(Start(path.stem, words, path, OF_PHOTOS))
    return found, remarks


def make_images(starts: Sequence[Start], session: Session, sampling: ImageOptions, output: Path, seed: int) -> None:
    """Make an image of each layout; write both below the output."""
    for start in tqdm(starts, "images", leave=False):
        start.layout.write(_file(output, LAYOUTS, start, ".npz"))
        (image,) = session.images_quietly([start.layout], sampling, seeds=[seed])
        with atomic_write(_file(output, IMAGES, start, ".png")) as temporary:
            image.save(temporary)


@dataclass(frozen=True, eq=False)
class Loop:
    """Finds regions again in the images below an output folder.

    way  a key of WAYS
    """

    starts: Sequence[Start]
    segmenter: Segmenter
    way: str
    output: Path

    def results(self) -> list[Result]:
        """Measure the IoU of all regions, in made images, and in real ones where a layout has one."""
        means: dict[tuple[str, str], RegionMean] = {}
        for start in tqdm(self.starts, "regions", leave=False):
            for source, image in self._images(start):
                for value in self._again(start, image).iou:
                    means.setdefault((start.number, source), RegionMean()).add(start.key, value)
        return [mean.result(name, source) for (name, source), mean in means.items()]

    def _images(self, start: Start) -> Iterator[tuple[str, np.ndarray]]:
        yield GENERATED, self._made(start)
        if start.photo is not None and start.number == OF_LAYOUTS:
            yield REAL, read_photo(start.photo)

    def _made(self, start: Start) -> np.ndarray:
        return np.asarray(load_image(_file(self.output, IMAGES, start, ".png")).convert("RGB"))

    def _again(self, start: Start, image: np.ndarray) -> Again:
        return find_again(image, WAYS[self.way](start.layout), self.segmenter)

    def gallery(self) -> Gallery:
        """Build the pictures of a page: masks, image, what was found again, and the photo."""
        by_key = {start.key: start for start in self.starts}

        def item(key: str) -> Item:
            start = by_key[key]
            question = WAYS[self.way](start.layout)
            layout = Layout(question.masks, question.captions, start.layout.caption, name=key, overlap="share")
            return Item(key, self._made(start), layout=layout)

        def photo(key: str) -> np.ndarray | None:
            return None if by_key[key].photo is None else read_photo(by_key[key].photo)

        return Gallery(item, photo, lambda one: self._again(by_key[one.key], one.image).found)


def _file(output: Path, folder: str, start: Start, suffix: str) -> Path:
    return output / folder / f"{start.key}{suffix}"
