"""Build layouts out of boxes and an order: what the readers of layout sets share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from seg2any.data.dataset import Annotation, MaskStack, SampleError
from seg2any.layout.checks import LayoutError, check_caption, check_mask_shape
from seg2any.layout.entries import is_number
from seg2any.system.errors import shown

FORMS = ("xyxy", "xywh")


@dataclass(frozen=True, eq=False)
class Record:
    """One sample: its regions from the back to the front, which hide each other.

    size      (H, W) of the masks
    masks     bool [N, H, W], whole also where another region hides them
    """

    key: str
    size: tuple[int, int]
    masks: np.ndarray
    captions: tuple[str, ...]
    caption: str | None

    def annotation(self) -> Annotation:
        """Return the record as data sets give it."""
        return Annotation(self.key, MaskStack(self.masks), self.captions, self.caption, overlap="hide")

    def digest(self) -> str:
        """Return a digest of everything."""
        digest = hashlib.sha256(repr((self.key, self.masks.shape, self.captions, self.caption)).encode())
        digest.update(np.packbits(self.masks).tobytes())
        return digest.hexdigest()


def ordered(record: Record, back_to_front: Sequence[int]) -> Record:
    """Put the regions into an order."""
    captions = tuple(record.captions[number] for number in back_to_front)
    return replace(record, masks=record.masks[list(back_to_front)], captions=captions)


def box_of(where: str, value: object, form: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Read a box as left, top, right and bottom in pixels.

    form  "xyxy" or "xywh"; numbers of which none exceeds 1 are shares of the image

    Raises SampleError.
    """
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(is_number, value)):
        raise SampleError(f"{where}: box is {shown(value)}; write four numbers")
    left, top, right, bottom = (float(number) for number in value)
    if form == "xywh":
        right, bottom = left + right, top + bottom
    if max(left, top, right, bottom) <= 1:
        (height, width) = size
        left, right, top, bottom = left * width, right * width, top * height, bottom * height
    if not (math.isfinite(left + top + right + bottom) and left < right and top < bottom):
        raise SampleError(f"{where}: box {shown(value)} has no area as {form}; check the form of the boxes")
    return left, top, right, bottom


def draw_box(where: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Draw a box in pixels, to the nearest ones, as a mask bool `size`. Raises SampleError if it lies outside."""
    left, top, right, bottom = box
    mask = np.zeros(size, bool)
    spans = []
    for start, stop, side in ((top, bottom, size[0]), (left, right, size[1])):
        first, last = math.floor(start + 0.5), math.floor(stop + 0.5)
        first = min(max(first, 0), side - 1) if stop > 0 and start < side else side
        spans.append(slice(first, max(min(last, side), first + 1)))
    mask[tuple(spans)] = True
    if not mask.any():
        raise SampleError(f"{where}: box {shown(box)} lies outside the image of {size[1]}x{size[0]}")
    return mask


def check_count(where: str, count: int, size: tuple[int, int]) -> None:
    """Raise SampleError if so many masks of `size` (H, W) are too many or too large; call this before drawing them."""
    try:
        check_mask_shape(where, (count, *size))
    except LayoutError as error:
        raise SampleError(str(error)) from None


def stacked(where: str, masks: Sequence[np.ndarray], captions: Iterable[object]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Check captions and stack masks. Raises SampleError."""
    captions = tuple(captions)
    if not masks:
        raise SampleError(f"{where}: it has no region")
    if any(mask.shape != masks[0].shape for mask in masks):
        raise SampleError(f"{where}: its masks differ in size; store them again")
    try:
        check_mask_shape(where, (len(masks), *masks[0].shape))
        for number, caption in enumerate(captions, start=1):
            check_caption(f"{where}: caption {number}", caption)
    except LayoutError as error:
        raise SampleError(str(error)) from None
    return np.stack(masks), captions


def from_back_to_front(masks: np.ndarray, in_front: np.ndarray | None = None) -> list[int]:
    """Order regions by who hides whom.

    masks     bool [N, H, W]
    in_front  bool [N, N], [i, j] if i hides j; None: nothing is known

    Regions that nothing orders lie from the largest, at the back, to the smallest. So does, in a circle of regions that
    hide each other, the largest, which is taken for the hindmost.
    """
    areas = masks.sum((1, 2))
    left = list(range(len(masks)))
    hides = np.zeros((len(masks),) * 2, bool) if in_front is None else in_front & ~in_front.T
    order = []
    while left:
        # Hindmost: those that hide none of the others that are left.
        free = [number for number in left if not hides[number, left].any()] or left
        order.append(max(free, key=lambda number: (areas[number], -number)))
        left.remove(order[-1])
    return order
