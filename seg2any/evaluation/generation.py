"""The missing images of a benchmark, and making them.

Images are made in blocks of `batch_size`, counted over the whole data set. A block's members never change: if one image
of it is missing, it is made among the same neighbours as the first time, and so comes out the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from seg2any.attention.settings import ConditionSettings
from seg2any.data.dataset import DataSet
from seg2any.evaluation.generated import image_path, image_seed
from seg2any.generate.folder import Batch, State, look_at, make_images
from seg2any.generate.recipe import save_image
from seg2any.generate.session import ImageOptions, Session
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError
from seg2any.system.files import check_name
from seg2any.system.processes import Process

PIL_QUALITY = 75  # Pillow's default for JPEG, with which the published images were saved


@dataclass(frozen=True)
class Wanted:
    """Image `number` of sample `index`."""

    index: int
    number: int
    seed: int
    path: Path


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images to make, and what they share.

    size     (H, W) of the images; masks are stretched to it, as in training
    recipe   settings, model, adapter and so on, written into every image
    """

    data: DataSet
    folder: Path
    samples: int
    images_per_sample: int
    image_format: str
    size: tuple[int, int]
    seed: int
    recipe: dict

    def wanted(self) -> list[Wanted]:
        """List every image, sample by sample. Raises UserError if two would share a file."""
        found = []
        for index in range(self.samples):
            key = self.data.key(index)
            for number in range(self.images_per_sample):
                path = image_path(self.folder, number, key, self.image_format)
                check_name(path)
                found.append(Wanted(index, number, image_seed(self.seed, key, number), path))
        if len({image.path for image in found}) != len(found):
            raise UserError("two samples of the data set have one name and would share a file; rename one")
        return found

    def layout(self, index: int) -> Layout:
        """Return the sample's layout with masks at the size of the image, nearest-exact."""
        layout = self.data.annotation(index).layout
        return replace(layout, masks=resize_masks(layout.masks, self.size))

    def recipe_of(self, image: Wanted, layout: Layout) -> dict:
        """Build the recipe that the image file holds: everything that decides how it looks."""
        asked = {name: getattr(layout, name) for name in ("name", "caption", "captions", "overlap")}
        own = {"layout": {"sha256": layout.digest(), **asked}, "seed": image.seed, "size": list(self.size)}
        return {**own, "image": image.number, **self.recipe}


def plan(task: ImageSet, batch_size: int, process: Process, overwrite: bool) -> tuple[list[Batch[Wanted]], int]:
    """List the blocks of `process` that lack an image, and count its finished images.

    Raises UserError for images of another run, which would spoil every mean over the folder.
    """
    wanted = task.wanted()
    blocks = [tuple(wanted[start : start + batch_size]) for start in range(0, len(wanted), batch_size)]
    to_do, finished = [], 0
    for block in tqdm(process.share(blocks), "images that are there", disable=not process.is_first, leave=False):
        missing = tuple(image for image in block if overwrite or not _is_finished(task, image))
        finished += len(block) - len(missing)
        if missing:
            to_do.append(Batch(block, missing))
    return to_do, finished


def _is_finished(task: ImageSet, image: Wanted) -> bool:
    found = look_at(image.path, lambda: task.recipe_of(image, task.layout(image.index)))
    if found.state is State.FOREIGN:
        raise UserError(f"{image.path}: another program made the image; use --overwrite or another folder")
    if found.state is State.OTHER:
        raise UserError(f"{image.path}: the image was made with another {', '.join(found.differs)}; use --overwrite")
    return not found.is_to_be_made


def make_missing(
    task: ImageSet, blocks: Sequence[Batch[Wanted]], session: Session, settings: ConditionSettings, shown: bool
) -> None:
    """Make the images block by block; each is written, whole or not at all, after its block."""

    def save(image: Wanted, layout: Layout, picture: Image.Image) -> None:
        save_image(picture, task.recipe_of(image, layout), image.path, quality=PIL_QUALITY)

    chosen = (task.recipe["num_inference_steps"], task.recipe["guidance_scale"])
    sampling = ImageOptions(settings, *chosen, *task.size)
    make_images(session, blocks, sampling, lambda image: task.layout(image.index), save, shown)
