"""A layout: what is drawn where. It goes into generation and comes out of segmentation."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seg2any.layout.checks import (
    LayoutError,
    LayoutParts,
    check_caption,
    check_masks,
    check_scores,
    check_seed,
    check_source,
    overlap,
)


@dataclass(frozen=True, eq=False)
class Layout:
    """N masks with a caption each, in z order (a later region lies on top of an earlier one), and a global caption.

    masks     bool [N, H, W]; may overlap, touch the border or be empty; pixels of no mask are background
    captions  N strings, none blank
    caption   of the whole image, or None
    seed      0 <= seed < 2**63, or None
    name      what its results are called
    scores    float [N] in [0, 1], how sure the segmenter is of each region; None if no segmenter made the layout
    source    the segmenter that found the regions; "" if none did or it is unknown

    N = 0 is a layout of background only: some data sets hold such images, the file readers refuse them.

    >>> Layout(np.ones((1, 2, 3), dtype=bool), ("a wall",), caption="a wall").size
    (2, 3)

    Raises LayoutError if the parts do not fit together.
    """

    masks: np.ndarray
    captions: tuple[str, ...]
    caption: str | None = None
    seed: int | None = None
    name: str = ""
    scores: np.ndarray | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "captions", tuple(self.captions))
        where = f"layout {self.name!r}" if self.name else "layout"
        check_masks(where, self.masks)
        if len(self.masks) != len(self.captions):
            raise LayoutError(f"{where}: {len(self.masks)} masks but {len(self.captions)} captions; give one per mask")
        for number, text in enumerate(self.captions, start=1):
            check_caption(f"{where}: caption {number}", text)
        if self.caption is not None:
            check_caption(f"{where}: caption", self.caption)
        if self.seed is not None:
            check_seed(f"{where}: seed", self.seed)
        if self.scores is not None:
            check_scores(where, self.scores, len(self.masks))
        check_source(where, self.source)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the masks."""
        height, width = self.masks.shape[1:]
        return height, width

    @property
    def background(self) -> np.ndarray:
        """bool [H, W]: the pixels of no mask."""
        return ~self.masks.any(axis=0)

    @property
    def overlap(self) -> np.ndarray:
        """bool [H, W]: the pixels of two or more masks."""
        return overlap(self.masks)

    def digest(self) -> str:
        """Return the sha256 in hex of masks and captions, the only fields that say what is drawn where."""
        digest = hashlib.sha256(repr((self.masks.shape, self.captions, self.caption)).encode())
        digest.update(np.packbits(self.masks).tobytes())
        return digest.hexdigest()

    def flattened(self) -> Layout:
        """The same picture without overlaps: every pixel belongs to its topmost region only."""
        covered_above = np.zeros(self.size, dtype=bool)
        masks = np.empty_like(self.masks)
        for n in reversed(range(len(self.masks))):
            masks[n] = self.masks[n] & ~covered_above
            covered_above |= self.masks[n]
        return replace(self, masks=masks)

    @classmethod
    def read(cls, path: str | os.PathLike, snap_colors: bool = False) -> Layout:
        """Read any format of seg2any.layout.readers; `snap_colors` merges soft edges and JPEG noise of a colour map.

        Raises LayoutError, whose one line names the file, the field and the fix, and warns with LayoutWarning.
        """
        from seg2any.layout.readers import read_layout  # late: readers bring PIL and cv2, which a Layout needs not

        parts = read_layout(Path(path), snap_colors)
        try:
            return cls(*parts)
        except LayoutError as error:
            raise LayoutError(f"{path}: {error}") from None

    @classmethod
    def find(cls, path: str | os.PathLike) -> list[Path]:
        """The layouts of a folder, sorted by name, or the one layout that `path` is; each can be given to `read`."""
        from seg2any.layout.find import find_layouts

        return find_layouts(Path(path))

    def write(self, path: str | os.PathLike) -> None:
        """Write NAME.json with NAME.png (the published format), or NAME.npz, which also holds overlaps and scores."""
        from seg2any.layout.readers import write_layout

        parts = LayoutParts(self.masks, self.captions, self.caption, self.seed, self.name, self.scores, self.source)
        write_layout(parts, Path(path))
