"""What a data set knows of a sample before any image is read: captions, and regions as they are stored.

Counting tokens of a million samples must not draw a million stacks of masks, so regions keep their stored form; every
form can draw itself (`masks`), which is the definition that faster code is checked against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from seg2any.layout import Layout
from seg2any.layout.rle import draw_runs


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Disjoint regions: `labels` uint8 or uint16 [H, W], region i is where it equals `values[i]`.

    background  the only other value there may be; None if there may be several
    """

    labels: np.ndarray
    values: tuple[int, ...]
    background: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored map."""
        return self.labels.shape[:2]

    def masks(self) -> np.ndarray:
        """bool [N, H, W]."""
        return self.labels[None] == np.asarray(self.values, self.labels.dtype)[:, None, None]


@dataclass(frozen=True, eq=False)
class RunLengths:
    """Regions that may overlap, as in COCO and SA-1B: `runs[i]` int [R] are lengths in column-major order, of pixels
    outside and inside the region in turn, outside first."""

    size: tuple[int, int]
    runs: tuple[np.ndarray, ...]

    def masks(self) -> np.ndarray:
        """bool [N, H, W]."""
        height, width = self.size
        stack = [draw_runs(runs, self.size) for runs in self.runs]
        return np.stack(stack) if stack else np.zeros((0, height, width), bool)


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Regions that may overlap, drawn: `stack` bool [N, H, W]."""

    stack: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored masks."""
        return self.stack.shape[1:]

    def masks(self) -> np.ndarray:
        """bool [N, H, W], all of them drawn."""
        return self.stack


Regions = LabelMap | RunLengths | MaskStack


@dataclass(frozen=True, eq=False)
class Annotation:
    """Everything about sample `key` but its pixels: regions with one caption each, and a global caption or None."""

    key: str
    regions: Regions
    captions: tuple[str, ...]
    caption: str | None = None

    @cached_property
    def layout(self) -> Layout:
        """Masks at their stored size. Raises UserError for what no layout can be (no region, no caption)."""
        return Layout(self.regions.masks(), self.captions, self.caption, name=self.key)
