"""The missing images of a benchmark, and making them.

Images are made in blocks of `batch_size`, counted over the whole data set. A block's members never change: if one image
of it is missing, it is made among the same neighbours as the first time, and so comes out the same to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import TextCache, TruncationWarning
from seg2any.data.dataset import DataSet
from seg2any.evaluation.generated import image_path, image_seed
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.recipe import BrokenImage, differences, read_recipe, save_image
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError
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
class Task:
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
        asked = {"name": layout.name, "caption": layout.caption, "captions": list(layout.captions)}
        own = {"layout": {"sha256": layout.digest(), **asked}, "seed": image.seed, "size": list(self.size)}
        return {**own, "image": image.number, **self.recipe}


@dataclass(frozen=True)
class Block:
    """Images that are made together, and the missing ones among them."""

    images: tuple[Wanted, ...]
    missing: frozenset[Wanted]


def plan(task: Task, batch_size: int, process: Process, overwrite: bool) -> tuple[list[Block], int]:
    """List the blocks of `process` that lack an image, and count its finished images.

    Raises UserError for images of another run, which would spoil every mean over the folder.
    """
    wanted = task.wanted()
    blocks = [tuple(wanted[start : start + batch_size]) for start in range(0, len(wanted), batch_size)]
    to_do, finished = [], 0
    for block in tqdm(process.share(blocks), "images that are there", disable=not process.is_first, leave=False):
        missing = frozenset(image for image in block if overwrite or not _is_finished(task, image))
        finished += len(block) - len(missing)
        if missing:
            to_do.append(Block(block, missing))
    return to_do, finished


def _is_finished(task: Task, image: Wanted) -> bool:
    if not image.path.exists():
        return False
    try:
        recipe = read_recipe(image.path)
    except BrokenImage:
        return False
    if recipe is None:
        raise UserError(f"{image.path}: another program made the image; use --overwrite or another folder")
    other = differences(recipe, task.recipe_of(image, task.layout(image.index)))
    if other:
        raise UserError(f"{image.path}: the image was made with another {', '.join(other[:4])}; use --overwrite")
    return True


def make_images(
    task: Task, blocks: Sequence[Block], pipeline: Seg2AnyPipeline, settings: ConditionSettings, shown: bool
) -> None:
    """Make the images block by block; each is written, whole or not at all, after its block."""
    pipeline.set_progress_bar_config(desc="steps", leave=False, unit="step", disable=not shown)
    known_texts = TextCache(pipeline.base)
    n_images = sum(len(block.missing) for block in blocks)
    with tqdm(total=n_images, desc="images", unit="image", disable=not shown) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # a data set's captions cannot be changed
        for block in blocks:
            layouts = {image.index: task.layout(image.index) for image in block.images}
            made = pipeline(
                [layouts[image.index] for image in block.images],
                height=task.size[0],
                width=task.size[1],
                num_inference_steps=task.recipe["num_inference_steps"],
                guidance_scale=task.recipe["guidance_scale"],
                seeds=[image.seed for image in block.images],
                settings=settings,
                known_texts=known_texts,
            ).images
            for image, picture in zip(block.images, made, strict=True):
                if image in block.missing:
                    recipe = task.recipe_of(image, layouts[image.index])
                    save_image(picture, recipe, image.path, quality=PIL_QUALITY)
            bar.update(len(block.missing))
