"""The scenes of a run, and the batches in which images of them are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seg2any.data.dataset import Sample
from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.generated import image_seed

N_SCENES = 1000  # of the data set's split; a scene does not depend on it, its name does not either


@dataclass(frozen=True, eq=False)
class Scenes:
    """The first scenes of a kind of the test split, and the seeds of the images that are made of each."""

    kind: str
    samples: tuple[Sample, ...]
    seeds: dict[str, tuple[int, ...]]
    fingerprint: str

    @classmethod
    def draw(cls, kind: str, count: int, images: int, seed: int) -> Scenes:
        """The first `count` scenes, and for each `images` seeds that follow from `seed`."""
        data = ShapesDataset("test", N_SCENES, kind)
        samples = tuple(data[index] for index in range(count))
        keys = [sample.layout.name for sample in samples]
        seeds = {key: tuple(image_seed(seed, key, number) for number in range(images)) for key in keys}
        return cls(kind, samples, seeds, data.fingerprint())

    @property
    def images(self) -> int:
        """How many images a row takes."""
        return sum(map(len, self.seeds.values()))

    def batches(self, size: int) -> list[Sequence[Sample]]:
        """Scenes whose images make about `size` together, those with equally many regions side by side: a batch is as
        long as its longest member."""
        of_scene = len(self.seeds[self.samples[0].layout.name])
        step = max(1, size // of_scene)
        ordered = sorted(self.samples, key=lambda sample: len(sample.layout.captions))
        return [ordered[start : start + step] for start in range(0, len(ordered), step)]

    def seeds_of(self, batch: Sequence[Sample]) -> list[int]:
        """In the order in which the pipeline makes the images: all of the first scene, then of the second."""
        return [seed for sample in batch for seed in self.seeds[sample.layout.name]]
