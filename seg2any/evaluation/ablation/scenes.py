"""The scenes of a run, and the batches in which their images are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seg2any.data.dataset import Sample
from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.generated import image_seed

N_SCENES = 1000  # size of the data set's split; neither scenes nor their names depend on it


@dataclass(frozen=True, eq=False)
class Scenes:
    """The first scenes of a kind of the test split, and the seeds of their images."""

    kind: str
    samples: tuple[Sample, ...]
    seeds: dict[str, tuple[int, ...]]
    fingerprint: str

    @classmethod
    def draw(cls, kind: str, count: int, images: int, seed: int) -> Scenes:
        """Draw the first `count` scenes, and for each `images` seeds that follow from `seed`."""
        data = ShapesDataset("test", N_SCENES, kind)
        samples = tuple(data[index] for index in range(count))
        keys = [sample.layout.name for sample in samples]
        seeds = {key: tuple(image_seed(seed, key, number) for number in range(images)) for key in keys}
        return cls(kind, samples, seeds, data.fingerprint())

    @property
    def images(self) -> int:
        """Number of images that a row takes."""
        return sum(map(len, self.seeds.values()))

    def batches(self, size: int) -> list[Sequence[Sample]]:
        """Group scenes so that a batch makes about `size` images.

        Scenes with equally many regions stand side by side, because a batch is as long as its longest member.
        """
        of_scene = len(self.seeds[self.samples[0].layout.name])
        step = max(1, size // of_scene)
        ordered = sorted(self.samples, key=lambda sample: len(sample.layout.captions))
        return [ordered[start : start + step] for start in range(0, len(ordered), step)]

    def seeds_of(self, batch: Sequence[Sample]) -> list[int]:
        """List the seeds in the pipeline's order: all of the first scene, then of the second."""
        return [seed for sample in batch for seed in self.seeds[sample.layout.name]]
