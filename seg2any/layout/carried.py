"""Fit a layout into what a format can hold, and name what is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from seg2any.layout.checks import LayoutError
from seg2any.layout.grid_boxes import box_mask, grid_box
from seg2any.layout.layout import Layout


@dataclass(frozen=True)
class Holds:
    """The parts of a layout that a format holds.

    texts     names among caption, seed, scores and source
    overlaps  "none": a pixel is in one region; "hide" or "share": masks overlap, and a reader takes that for granted
    empty     whether a mask may have no pixel
    boxes     whether regions are held as boxes only, on the grid of `grid_boxes`
    """

    texts: tuple[str, ...]
    overlaps: str
    empty: bool = False
    boxes: bool = False


FORMATS: Mapping[str, Holds] = {
    "json": Holds(("caption", "seed", "scores", "source"), "none"),
    "npz": Holds(("caption", "seed", "scores", "source"), "hide", empty=True),
    "coco": Holds(("caption", "seed"), "share"),
    "labelme": Holds(("caption", "seed"), "hide"),
    "cvat": Holds((), "hide"),
    "ade": Holds((), "none"),
    "flux3": Holds(("caption",), "hide", boxes=True),
    "ideogram4": Holds(("caption",), "hide", boxes=True),
}


def fitted(layout: Layout, form: str, class_names: Mapping[int, str]) -> tuple[Layout, list[str]]:
    """Return the layout as a format of FORMATS holds it, and a line for each thing that is lost.

    class_names  the only captions that "ade" holds

    Raises LayoutError if no region is left.
    """
    holds, lost = FORMATS[form], []
    fit = layout
    for name, (named, nothing) in TEXTS.items():
        value = getattr(fit, name)
        if name not in holds.texts and value is not None and not (isinstance(value, str) and value == nothing):
            lost.append(named)
            fit = replace(fit, **{name: nothing})
    fit, about = OVERLAPS[holds.overlaps](fit)
    lost += about
    if form == "ade":
        fit, about = _only(fit, [text in class_names.values() for text in fit.captions], "that are no class of ADE20K")
        lost += about
        if doubled := len(fit.captions) - len({*fit.captions}):
            lost.append(f"the borders between regions of one class: {doubled} regions become parts of others")
    if not holds.empty:
        fit, about = _only(fit, fit.masks.any(axis=(1, 2)).tolist(), "that have no pixel, or are hidden")
        lost += about
    if holds.boxes:
        fit, about = _framed(fit)
        lost += about
    if not len(fit.masks) and not holds.empty:
        raise LayoutError(f"layout {layout.name!r}: no region is left in {form} ({'; '.join(lost)}); choose npz")
    return fit, [f"{layout.name}: not carried over: {one}" for one in lost]


TEXTS = {  # name -> words for it, and its value where there is none
    "caption": ("the global caption", None),
    "seed": ("the seed", None),
    "source": ("the name of the segmenter", ""),
    "scores": ("the scores", None),
}


def _only(layout: Layout, kept: list[bool], which: str) -> tuple[Layout, list[str]]:
    """Drop regions."""
    dropped = [text for text, keep in zip(layout.captions, kept, strict=True) if not keep]
    if not dropped:
        return layout, []
    named = ", ".join(repr(text) for text in dropped[:4]) + (", ..." if len(dropped) > 4 else "")
    fit = replace(
        layout,
        masks=layout.masks[np.array(kept, dtype=bool)],
        captions=tuple(text for text, keep in zip(layout.captions, kept, strict=True) if keep),
        scores=None if layout.scores is None else layout.scores[np.array(kept, dtype=bool)],
    )
    return fit, [f"{len(dropped)} regions {which} ({named})"]


def _framed(layout: Layout) -> tuple[Layout, list[str]]:
    height, width = layout.size
    boxes = [box_mask(grid_box(mask), layout.size) for mask in layout.masks]
    others = sum(not np.array_equal(box, mask) for box, mask in zip(boxes, layout.masks, strict=True))
    lost = [f"the shapes of {others} regions, of which their boxes are left"] if others else []
    masks = np.stack(boxes) if boxes else layout.masks
    return replace(layout, masks=masks), [*lost, f"the size {width}x{height}; give it to the model"]


def _flat(layout: Layout) -> tuple[Layout, list[str]]:
    if not (shared := int(layout.shared.sum())):
        return layout, []
    what = "hidden below later regions" if layout.overlap == "hide" else "in several regions, now in the last one only"
    return replace(layout.flattened(), overlap="hide"), [f"{shared} pixels {what}"]


def _hiding(layout: Layout) -> tuple[Layout, list[str]]:
    if layout.overlap == "hide" or not (shared := int(layout.shared.sum())):
        return layout, []
    return replace(layout, overlap="hide"), [
        f"that {shared} pixels belong to several regions at once: use --overlap share where the file is read"
    ]


def _sharing(layout: Layout) -> tuple[Layout, list[str]]:
    return _flat(layout) if layout.overlap == "hide" else (layout, [])


OVERLAPS: Mapping[str, Callable[[Layout], tuple[Layout, list[str]]]] = {
    "none": _flat,
    "hide": _hiding,
    "share": _sharing,
}
