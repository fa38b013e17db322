"""Define what a data set offers: samples, and their annotations without the pixels.

Counting the tokens of a million samples must not draw a million stacks of masks, so an annotation keeps its regions in
their stored form. Every form can draw itself (`masks`), which is the definition that faster code is checked against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from seg2any.layout import Layout
from seg2any.layout.rle import draw_runs
from seg2any.system.errors import UserError


class SampleError(UserError):
    """A sample that cannot be used, while others can. The message names its file."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image uint8 [H, W, 3] and the layout that describes it, masks at the image's own size."""

    image: np.ndarray
    layout: Layout


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Disjoint regions: region i is where `labels` uint8 or uint16 [H, W] is `values[i]`.

    background  the only other value in `labels`; None if there may be several
    """

    labels: np.ndarray
    values: tuple[int, ...]
    background: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored map."""
        return self.labels.shape[:2]

    def masks(self) -> np.ndarray:
        """Draw the regions: bool [N, H, W]."""
        return self.labels[None] == np.asarray(self.values, self.labels.dtype)[:, None, None]


@dataclass(frozen=True, eq=False)
class RunLengths:
    """Regions that may overlap, as in COCO and SA-1B.

    runs  `runs[i]` int [R] are lengths in column-major order of pixels outside and inside region i in turn, outside
          first
    """

    size: tuple[int, int]
    runs: tuple[np.ndarray, ...]

    def masks(self) -> np.ndarray:
        """Draw the regions: bool [N, H, W]."""
        height, width = self.size
        stack = [draw_runs(runs, self.size) for runs in self.runs]
        return np.stack(stack) if stack else np.zeros((0, height, width), bool)


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Regions that may overlap, already drawn: `stack` bool [N, H, W]."""

    stack: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored masks."""
        return self.stack.shape[1:]

    def masks(self) -> np.ndarray:
        """Return the regions: bool [N, H, W]."""
        return self.stack


Regions = LabelMap | RunLengths | MaskStack


@dataclass(frozen=True, eq=False)
class Annotation:
    """Everything about sample `key` but its pixels.

    Every region has a caption; the global caption may be None. `overlap` is that of the layout: "hide" where regions
    lie in an order, from the back to the front.
    """

    key: str
    regions: Regions
    captions: tuple[str, ...]
    caption: str | None = None
    overlap: str = "share"

    @cached_property
    def layout(self) -> Layout:
        """Draw the masks at their stored size. Raises UserError without regions or captions."""
        return Layout(self.regions.masks(), self.captions, self.caption, name=self.key, overlap=self.overlap)


class DataSet(Protocol):
    """`len(data)` samples in a fixed order.

    Picklable and without open files, so that several processes may use it at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read image and layout, both at the image's own size. Raises SampleError."""

    def key(self, index: int) -> str:
        """Return the sample's name, unique in the data set and the same in every run."""

    def annotation(self, index: int) -> Annotation:
        """Read everything but the image. Raises SampleError."""

    def photo_digest(self, index: int) -> str:
        """Return a digest that another photo of this key changes; "" where photos never change."""

    def fingerprint(self) -> str:
        """Return a sha256 hex digest that changes when keys, captions or regions change."""


@runtime_checkable
class WithoutPhotos(Protocol):
    """A data set of layouts alone: reading a sample raises SampleError, reading its annotation does not."""

    without_photos: bool


@runtime_checkable
class ClosedSet(Protocol):
    """A data set without global captions; its regions have captions of `class_captions`."""

    class_captions: tuple[str, ...]
