"""Define the layout, masks with captions, which images are made from and segmented into."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seg2any.layout.arrays import as_masks, as_scores
from seg2any.layout.checks import (
    LayoutError,
    LayoutParts,
    check_caption,
    check_drawn_colors,
    check_overlap,
    check_scores,
    check_seed,
    check_source,
)
from seg2any.layout.overlap import shared_pixels, visible_masks
from seg2any.system.files import user_path
from seg2any.system.shipped import input_path


@dataclass(frozen=True, eq=False)
class Layout:
    """Masks with captions and a global caption; by default later regions hide earlier ones.

    masks     bool [N, H, W]; may overlap, touch the border or be empty; pixels of no mask are background. Given as
              anything that `seg2any.layout.arrays.as_masks` converts: numbers, tensors, a list of masks or pictures
    captions  N strings, none blank
    caption   of the whole image, or None
    seed      0 <= seed < 2**63, or None
    name      file name of the results, without suffix
    scores    float [N] in [0, 1], given as array, tensor or list: the segmenter's confidence in each region; or None
    source    name of the segmenter that found the regions; "" = none, or unknown
    overlap   "hide": a pixel belongs to its topmost region only, that of the last mask that holds it; "share": to all
              regions whose masks hold it, as in COCO, SA-1B and the published code. Data sets and segmenters, whose
              masks have no order, say "share"
    colors    N triples (red, green, blue) in which the regions were drawn; None if they were not
    notes     lines about what a reader made of the file, such as which colour it took for paper; or the reason why a
              segmenter found no region

    N = 0 is a layout of background only; data sets and segmenters make them.

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
    overlap: str = "hide"
    colors: tuple[tuple[int, int, int], ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"layout {self.name!r}" if self.name else "layout"
        object.__setattr__(self, "masks", as_masks(where, self.masks))
        object.__setattr__(self, "captions", _as_captions(where, self.captions))
        if len(self.masks) != len(self.captions):
            message = f"{where}: {len(self.masks)} masks have {len(self.captions)} captions; give one caption per mask"
            raise LayoutError(message)
        for number, text in enumerate(self.captions, start=1):
            check_caption(f"{where}: caption {number}", text)
        if self.caption is not None:
            check_caption(f"{where}: caption", self.caption)
        if self.seed is not None:
            check_seed(f"{where}: seed", self.seed)
        if self.scores is not None:
            object.__setattr__(self, "scores", as_scores(where, self.scores))
            check_scores(where, self.scores, len(self.masks))
        check_source(where, self.source)
        check_overlap(where, self.overlap)
        if self.colors is not None:
            check_drawn_colors(where, self.colors, len(self.masks))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        height, width = self.masks.shape[1:]
        return height, width

    @property
    def background(self) -> np.ndarray:
        """The pixels outside all masks, bool [H, W]."""
        return ~self.masks.any(axis=0)

    @property
    def shared(self) -> np.ndarray:
        """The pixels in two or more masks, bool [H, W]."""
        return shared_pixels(self.masks)

    @property
    def visible(self) -> np.ndarray:
        """The pixels that belong to each region under `overlap`, bool [N, H, W]."""
        return visible_masks(self.masks) if self.overlap == "hide" else self.masks

    def digest(self) -> str:
        """Return the SHA-256, in hex, of masks, captions and global caption.

        Seed, name, scores, source, colors and notes do not change what is drawn where; `overlap` does, and recipes hold
        it apart.
        """
        digest = hashlib.sha256(repr((self.masks.shape, self.captions, self.caption)).encode())
        digest.update(np.packbits(self.masks).tobytes())
        return digest.hexdigest()

    def flattened(self) -> Layout:
        """Return the layout without overlaps: every pixel stays in its topmost region only."""
        return replace(self, masks=visible_masks(self.masks))

    @classmethod
    def read(cls, path: str | os.PathLike, snap_colors: bool | None = None) -> Layout:
        """Read a layout from any format of `seg2any.layout.readers`.

        snap_colors: give soft edges and JPEG noise of a colour map to the nearest region; None: where all listed
            colours are there and the rest are mixtures of them

        Raises LayoutError, one line that names the file, the field and the fix. Warns with LayoutWarning.
        """
        from seg2any.layout.readers import read_layout  # imported late: it needs PIL and cv2

        parts = read_layout(input_path(path), snap_colors)
        try:
            return cls(*parts)
        except LayoutError as error:
            raise LayoutError(f"{path}: {error}") from None

    @classmethod
    def find(cls, path: str | os.PathLike) -> list[Path]:
        """List the layouts of a folder, sorted by name, as paths for `read`.

        The path of a layout gives a list of this path only.
        """
        from seg2any.layout.find import find_layouts

        return find_layouts(input_path(path))

    def write(self, path: str | os.PathLike) -> None:
        """Write NAME.json with NAME.png (the published format), or NAME.npz.

        Scores and source are further keys of the published format. Raises LayoutError for masks that it cannot hold,
        which overlap or are empty; npz holds every layout.
        """
        from seg2any.layout.readers import write_layout

        write_layout(LayoutParts(*(getattr(self, name) for name in LayoutParts._fields)), user_path(path))


def _as_captions(where: str, given: object) -> tuple[str, ...]:
    """Return the captions as a tuple. Raises LayoutError for a single string, which is a row of letters to Python."""
    if isinstance(given, str):
        raise LayoutError(f"{where}: captions are one string; give a list with one caption per mask")
    try:
        return tuple(given)
    except TypeError:
        raise LayoutError(f"{where}: captions are {type(given).__name__}; give a list of strings") from None
