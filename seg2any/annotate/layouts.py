"""Give the regions of a layout captions by any source that `annotate` has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from seg2any.annotate.draft import Draft
from seg2any.annotate.masks import regions_of
from seg2any.annotate.photos import Photo
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks


def captioned(found: Layout, photo: Path, image: np.ndarray, write: Callable[[Draft], None]) -> Layout:
    """Return the regions of a photo that have a pixel, with captions of their own and of the photo.

    image  of the photo, uint8 [H, W, 3]
    write  as `open_writer` opens it

    A layout without any region comes back as it is. Raises what `FAULTS` lists.
    """
    size = image.shape[:2]
    regions = regions_of(found, size)
    if not regions:
        return found
    named = Photo(photo.name, str(photo), photo.stem, photo.parent.name)
    draft = Draft(named, size, regions, found.caption, masks_by=found.source or "")
    draft.image = image
    write(draft)
    kept = [region.id - 1 for region in regions]
    return replace(
        found,
        masks=resize_masks(found.masks, size)[kept],
        captions=tuple(region.caption for region in draft.regions),
        caption=draft.caption,
        scores=None if found.scores is None else found.scores[kept],
    )
