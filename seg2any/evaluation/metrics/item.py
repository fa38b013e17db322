"""Define the input of metrics, and the images that give a metric its ceiling and floors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from seg2any.layout import Layout
from seg2any.system.errors import UserError

GREY = 128
REAL, EMPTY, SHUFFLED = "real images", "grey images", "shuffled images"  # sources of images: ceiling and two floors


@dataclass(frozen=True, eq=False)
class Item:
    """One image and what is known about it.

    key     name of the sample; the images made of one sample share it
    image   uint8 [H, W, 3]
    group   0 for the first image of every sample, 1 for the second, and so on
    layout  masks and captions that the image should obey, if known; masks may differ from the image in size
    labels  class of every pixel, integer [H, W], IGNORED where there is none, if known
    """

    key: str
    image: np.ndarray
    group: int = 0
    layout: Layout | None = None
    labels: np.ndarray | None = None


def layout_of(item: Item, metric: str) -> Layout:
    """Return the item's layout. Raises UserError, naming the metric, if it has none."""
    if item.layout is None:
        raise UserError(f"{metric}: sample {item.key!r} comes without a layout; use a data set that has one")
    return item.layout


def grey(items: Iterable[Item]) -> Iterator[Item]:
    """Replace each image by an empty one: the floor that a judge reaches from the prompts alone."""
    return (replace(item, image=np.full_like(item.image, GREY)) for item in items)


def shuffled(items: Iterable[Item]) -> Iterator[Item]:
    """Replace each image by that of another sample: the floor of plausible but wrong images.

    Each item gets the last image of another sample before it. The first sample's items come last, with the last other
    image. Raises UserError if there is one sample only.
    """
    first: list[Item] = []
    current = other = None  # this item, and the last one of another sample
    for item in items:
        if current is not None and current.key != item.key:
            other = current
        current = item
        if other is None:
            first.append(item)
        else:
            yield replace(item, image=other.image)
    if first and other is None:
        raise UserError("shuffled images: there is one sample only; evaluate at least two")
    if first:
        last = other if current.key == first[0].key else current
        yield from (replace(item, image=last.image) for item in first)
