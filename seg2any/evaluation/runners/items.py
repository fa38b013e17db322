"""The images of a benchmark in the form that metrics take: generated ones, and real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from seg2any.data.dataset import DataSet, LabelMap, WithoutPhotos
from seg2any.evaluation.generated import Generated, read_image
from seg2any.evaluation.labels.label_maps import ClassTable, squashed
from seg2any.evaluation.metrics.item import EMPTY, REAL, SHUFFLED, Item, grey, shuffled


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A folder of generated images and their data set.

    table  the data set's classes; None if it has none
    """

    generated: Generated
    data: DataSet
    table: ClassTable | None

    @classmethod
    def open(cls, generated: Generated, cache_root: Path | None = None) -> Benchmark:
        """Open the data set of the images, which may keep what it found out about its files in `cache_root`.

        Raises UserError if images are missing or if the data set has changed.
        """
        data = generated.open_data(cache_root)
        generated.check_complete(data)
        name = generated.run["data"]["type"]
        return cls(generated, data, ClassTable.of(name) if name in ("ade20k", "coco_stuff") else None)

    @property
    def samples(self) -> int:
        """Number of samples with images, counted from the data set's first."""
        return self.generated.run["samples"]

    @property
    def has_photos(self) -> bool:
        """Whether there are real images, and so a ceiling."""
        return not isinstance(self.data, WithoutPhotos)

    def images(self, groups: Sequence[int] | None = None) -> Iterator[Item]:
        """Yield the generated images, group by group (default: all), with what they should show."""
        for group in range(self.generated.groups) if groups is None else groups:
            for index in self._bar(f"group {group}"):
                yield self.item(index, group)

    def real(self) -> Iterator[Item]:
        """Yield the photos at their own size, with their layouts; nothing for a data set without photos."""
        for index in self._bar(REAL) if self.has_photos else ():
            sample = self.data[index]
            yield Item(self.data.key(index), sample.image, layout=sample.layout)

    def bounds(self) -> dict[str, Iterator[Item]]:
        """Map names to items with labels that no model made: the ceiling and the floors.

        The ceiling is the photos, stretched to the images' size. The floor of shuffled images needs several samples.
        """
        found = {REAL: self._stretched(), EMPTY: grey(self._stretched())}
        return found | ({SHUFFLED: shuffled(self._stretched())} if self.samples > 1 else {})

    def item(self, index: int, group: int = 0) -> Item:
        """Read one generated image."""
        return self._item_of(index, read_image(self.generated.path(group, self.data.key(index))), group)

    def index(self, key: str) -> int:
        """Return the position of a measured sample in the data set."""
        return self._indices[key]

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {self.data.key(index): index for index in range(self.samples)}

    def classes(self, key: str) -> list[int]:
        """List the training classes of a sample's regions in order."""
        assert self.table is not None
        return [int(self.table.classes[value]) for value in self.data.annotation(self.index(key)).regions.values]

    def photo(self, index: int) -> np.ndarray | None:
        """Read the real image at the size of the generated ones, uint8 [H, W, 3]; None if there is none."""
        if not self.has_photos:
            return None
        height, width = self.generated.size
        photo = Image.fromarray(self.data[index].image)
        return np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))

    def _stretched(self) -> Iterator[Item]:
        for index in self._bar("bounds"):
            yield self._item_of(index, self.photo(index), 0)

    def _item_of(self, index: int, image: np.ndarray, group: int) -> Item:
        annotation = self.data.annotation(index)
        labels = None
        if self.table is not None and isinstance(annotation.regions, LabelMap):
            classes = self.table(annotation.regions.labels, f"sample {annotation.key}")
            labels = squashed(classes, self.generated.size)
        return Item(annotation.key, image, group, annotation.layout, labels)

    def _bar(self, title: str) -> Iterator[int]:
        return tqdm(range(self.samples), title, leave=False, unit="image")
