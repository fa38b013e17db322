"""A layout: what is drawn where. It goes into generation and comes out of segmentation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.errors import UserError

MAX_ENTITIES = 63  # one bit each in the int64 bit sets of seg2any.tokens; bit 63 is the sign
MAX_SEED = 2**63 - 1
MAX_PIXELS = 2**26  # of one mask
MAX_MASK_BYTES = 2**31  # of all masks of a layout


class LayoutError(UserError):
    """A layout that cannot be used. The message is one line whatever is in file names."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class LayoutWarning(UserWarning):
    """A layout that can be used, though perhaps not as its author meant it."""


@dataclass(frozen=True, eq=False)
class Layout:
    """N masks with a caption each, in z order (a later region lies on top of an earlier one), and a global caption.

    masks     bool [N, H, W]; may overlap, touch the border or be empty; pixels of no mask are background
    captions  N strings, none blank
    caption   of the whole image, or None
    seed      0 <= seed < 2**63, or None
    name      what its results are called

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

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the masks."""
        height, width = self.masks.shape[1:]
        return height, width

    @property
    def background(self) -> np.ndarray:
        """bool [H, W]: the pixels of no mask."""
        return ~self.masks.any(axis=0)

    def digest(self) -> str:
        """sha256 in hex of masks and captions. Seed and name do not enter: they do not change what is drawn where."""
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
        return Layout(masks, self.captions, self.caption, self.seed, self.name)

    @classmethod
    def read(cls, path: str | os.PathLike, snap_colors: bool = False) -> Layout:
        """Read any format of seg2any.layout_files; `snap_colors` merges soft edges and JPEG noise of a colour map.

        Raises LayoutError, whose one line names the file, the field and the fix, and warns with LayoutWarning.
        """
        from seg2any.layout_files import read_layout  # the readers build Layouts, so they import this module

        return read_layout(Path(path), snap_colors)

    @classmethod
    def find(cls, path: str | os.PathLike) -> list[Path]:
        """The layouts of a folder, sorted by name, or the one layout that `path` is; each can be given to `read`."""
        from seg2any.layout_files import find_layouts

        return find_layouts(Path(path))

    def write(self, path: str | os.PathLike) -> None:
        """Write NAME.json with NAME.png (the published format, which holds no overlaps), or NAME.npz (which does)."""
        from seg2any.layout_files import write_layout

        write_layout(self, Path(path))


def check_masks(where: str, masks: np.ndarray) -> None:
    """Raise LayoutError unless `masks` is bool [N <= 63, H >= 1, W >= 1]."""
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_ or masks.ndim != 3 or 0 in masks.shape[1:]:
        found = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, np.ndarray) else type(masks).__name__
        raise LayoutError(f"{where}: masks are {found}; give a bool array [N, H, W]")
    check_mask_shape(where, masks.shape)


def check_mask_shape(where: str, shape: Sequence[int]) -> None:
    """Raise LayoutError if [N, H, W] is more than can be handled, before anything of that size is made."""
    count, height, width = shape
    if count > MAX_ENTITIES:
        raise LayoutError(f"{where}: {count} regions, the most is {MAX_ENTITIES}; merge some")
    if height * width > MAX_PIXELS:
        raise LayoutError(f"{where}: {width}x{height} is more than {MAX_PIXELS >> 20} megapixels; scale it down")
    if count * height * width > MAX_MASK_BYTES:
        raise LayoutError(f"{where}: {count} masks of {width}x{height} need more than 2 GiB; scale the masks down")


def check_caption(where: str, text: object) -> None:
    """Raise LayoutError unless `text` is a string with something in it that UTF-8 can encode."""
    if not isinstance(text, str):
        raise LayoutError(f"{where} is {shown(text)}; write a string")
    if not text.strip():
        raise LayoutError(f"{where} is empty; say what is there")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LayoutError(f"{where} {shown(text)} holds half a surrogate pair; write the character itself") from None


def check_seed(where: str, seed: object) -> None:
    """Raise LayoutError unless `seed` is an integer that torch.Generator takes; True, 1.0 and NaN are not."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise LayoutError(f"{where} is {shown(seed)}; write a whole number from 0 to 2**63 - 1, or leave it out")


def shown(value: object, limit: int = 60) -> str:
    """`value` on one line, short enough for a message."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an int of over 4300 digits has no decimal form, a list may be too deep
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
