"""Read photos with the instances on them, and choose what a painting of them should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seg2any.bases.base import Base, Grid
from seg2any.data.aspect import fit
from seg2any.data.dataset import DataSet
from seg2any.diffusion.prepare import as_image
from seg2any.segment.coloring.paints import PAINTS, Legend, nearest_paints, painted
from seg2any.training.reading import Preparation, Reader


@dataclass(frozen=True, eq=False)
class ReadPhoto:
    """A sample as read from its files.

    pixels     uint8 [H, W, 3]
    instances  int64 [H, W]: 0 is the background, n the region of caption n - 1
    """

    index: int
    key: str
    captions: tuple[str, ...]
    pixels: np.ndarray
    instances: np.ndarray


class PhotoReader(Reader):
    """Reads photos and instances by index, at the size of training.

    crop  side in pixels of the window that is cut out of a photo, always the same of one photo; None: all of it
    """

    def __init__(self, data: DataSet, preparation: Preparation, crop: int | None = None):
        super().__init__(data, preparation, None, None)
        self.crop = crop

    def __call__(self, index: int) -> ReadPhoto:
        """Read sample `index`; where instances share pixels, the later one is on top. Raises SampleError."""
        sample, preparation = self.data[index], self.preparation
        fitted = fit(sample, preparation.size(sample.layout.size), preparation.aspect)
        visible = fitted.layout.visible
        instances = (visible * np.arange(1, len(visible) + 1)[:, None, None]).sum(0, dtype=np.int64)
        window = self._window(index, instances.shape)
        return ReadPhoto(
            index,
            self.data.key(index),
            sample.layout.captions,
            fitted.image[window],
            np.ascontiguousarray(instances[window]),
        )

    def _window(self, index: int, size: tuple[int, int]) -> tuple[slice, slice]:
        if self.crop is None:
            return slice(None), slice(None)
        starts = np.random.default_rng(index).random(2) * np.maximum(np.array(size) - self.crop + 1, 1)
        return tuple(slice(start, start + self.crop) for start in starts.astype(int).tolist())


@dataclass(frozen=True, eq=False)
class Photo:
    """One training sample of task coloring.

    latents  of the photo, float32 [I, D]
    n_text   tokens of its words, about
    """

    read: ReadPhoto
    latents: Tensor
    grid: Grid
    n_text: int

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Count tokens of text, image and condition."""
        return self.n_text, len(self.latents), len(self.latents)


class PhotoEncoder:
    """Encodes photos, and keeps their latents in memory if asked to."""

    known: dict = {}  # embeddings known beforehand, as `TrainingSet` expects: none

    def __init__(self, base: Base, keep: bool):
        self.base, self.keep, self.kept = base, keep, {}

    def __call__(self, reads: Sequence[ReadPhoto]) -> list[Photo]:
        return [self._encoded(read) for read in reads]

    def _encoded(self, read: ReadPhoto) -> Photo:
        patch = self.base.geometry.pixels_per_token
        grid = read.pixels.shape[0] // patch, read.pixels.shape[1] // patch
        latents = self.kept.get(read.key)
        if latents is None:
            latents = self.base.encode_images(as_image(read.pixels)).mean[0].float().cpu()
            if self.keep:
                self.kept[read.key] = latents
        return Photo(read, latents, grid, 0)


@dataclass(frozen=True, eq=False)
class Wish:
    """A painting to make.

    words  of a legend; "" where the model chooses the colours
    masks  bool [N, H, W] and colors uint8 [N, 3]: the regions to paint; without words, near the photo's own colours
    """

    words: str
    masks: np.ndarray
    colors: np.ndarray

    @property
    def picture(self) -> np.ndarray:
        """Paint it: uint8 [H, W, 3]."""
        return painted(self.masks, self.colors)


def wish_without_words(read: ReadPhoto) -> Wish:
    """Ask for a paint near each instance's own mean colour, no two alike while there are enough."""
    numbers = np.unique(read.instances)
    masks = read.instances[None] == numbers[numbers > 0][:, None, None]
    means = np.array([read.pixels[mask].mean(0) for mask in masks]).reshape(-1, 3)
    return Wish("", masks, nearest_paints(means))


def wish_in_words(read: ReadPhoto, most: int, generator: np.random.Generator) -> Wish:
    """Ask for paints by a legend of 1 to `most` of the photo's phrases, drawn with their paints and their order.

    Regions of one caption have one entry. A photo without a region asks for nothing, without words.
    """
    seen = [n for n in range(1, len(read.captions) + 1) if (read.instances == n).any()]
    phrases = list(dict.fromkeys(read.captions[n - 1] for n in seen))
    if not phrases:
        return wish_without_words(read)
    count = int(generator.integers(1, min(most, len(phrases), len(PAINTS)) + 1))
    chosen = [phrases[n] for n in generator.permutation(len(phrases))[:count]]
    paints = [list(PAINTS)[n] for n in generator.permutation(len(PAINTS))[:count]]
    legend = Legend(tuple(zip(chosen, paints, strict=True)))
    masks = [np.isin(read.instances, [n for n in seen if read.captions[n - 1] == phrase]) for phrase in chosen]
    return Wish(legend.text, np.array(masks), legend.colors)


def random_numbers(generator: torch.Generator, key: int | None = None) -> np.random.Generator:
    """Make a generator of numpy, seeded by a draw from a sample's own, or by a key."""
    return np.random.default_rng(torch.randint(2**31, (), generator=generator).item() if key is None else key)
