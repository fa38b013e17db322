"""What metrics read, and the images that no model made but every number is read against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from seg2any.layout import Layout
from seg2any.system.errors import UserError

GREY = 128
GENERATED = "generated"  # sources of images: a model,
REAL, EMPTY, SHUFFLED = "real images", "grey images", "shuffled images"  # the ceiling and two floors


@dataclass(frozen=True, eq=False)
class Item:
    """One image and what is known about it.

    key     of the sample; the images made of one sample share it
    image   uint8 [H, W, 3]
    group   0 for the first image of every sample, 1 for the second, and so on
    layout  masks and captions that the image should obey, where a metric needs them; masks may have another size
    labels  class of every pixel, integer [H, W], IGNORED where there is none; where a metric needs them
    """

    key: str
    image: np.ndarray
    group: int = 0
    layout: Layout | None = None
    labels: np.ndarray | None = None


def layout_of(item: Item, metric: str) -> Layout:
    """The item's layout. Raises UserError if it has none."""
    if item.layout is None:
        raise UserError(f"{metric}: sample {item.key!r} comes without a layout; use a data set that has one")
    return item.layout


def grey(items: Iterable[Item]) -> Iterator[Item]:
    """The same items with an empty image: the floor that what is known alone already reaches."""
    return (replace(item, image=np.full_like(item.image, GREY)) for item in items)


def shuffled(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each with the last image of another sample before it: the floor of plausible images of something
    else. The first sample's items come last, with the last other image. Raises UserError if there is one sample only.
    """
    first: list[Item] = []
    current = other = None  # the item at hand, and the last one of another sample
    for item in items:
        if current is not None and current.key != item.key:
            other = current
        current = item
        if other is None:
            first.append(item)
        else:
            yield replace(item, image=other.image)
    if first and other is None:
        raise UserError("shuffled images need at least two samples; evaluate more than one")
    if first:
        last = other if current.key == first[0].key else current
        yield from (replace(item, image=last.image) for item in first)
