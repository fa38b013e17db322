"""Attribute leakage: do regions show what was asked of other regions of the same image?

`colour_leak` needs no judge: it counts pixels whose nearest basic colour another region's caption names, and the
region's own does not. `caption_leak` lets CLIP choose the caption of each region.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from seg2any.evaluation.judges.clip import Clip
from seg2any.evaluation.metrics.item import GREY, Item, layout_of
from seg2any.evaluation.metrics.overlap import shift_border
from seg2any.evaluation.metrics.result import GENERATED, RegionMean, Result
from seg2any.layout.contour import resize_masks
from seg2any.layout.cut_out import box_with_margin

# The eleven basic colour terms of English, with typical values in sRGB.
COLOURS = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "red": (200, 35, 35),
    "orange": (240, 130, 20),
    "yellow": (240, 215, 50),
    "green": (50, 140, 60),
    "blue": (45, 90, 190),
    "purple": (125, 60, 160),
    "pink": (240, 150, 185),
    "brown": (115, 70, 35),
}
SPELLINGS = {"gray": "grey", "violet": "purple"}
WORDS = re.compile(rf"\b({'|'.join((*COLOURS, *SPELLINGS))})\b", re.IGNORECASE)
MARGIN = 2  # pixels inside the outline that do not count, in an image whose shorter side is 512


def named_colours(caption: str) -> set[str]:
    """Return the basic colours that a caption names."""
    words = {word.lower() for word in WORDS.findall(caption)}
    return {SPELLINGS.get(word, word) for word in words}


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """Find the nearest colour, in CIELAB, of sRGB values uint8 [P, 3]: index into COLOURS [P]."""
    lab, tones = (
        cv2.cvtColor(np.float32(values).reshape(-1, 1, 3) / 255, cv2.COLOR_RGB2LAB)[:, 0]
        for values in (pixels, list(COLOURS.values()))
    )
    return np.linalg.norm(lab[:, None] - tones, axis=-1).argmin(1)


def colour_leak(items: Iterable[Item], source: str = GENERATED) -> list[Result]:
    """Measure which shares of a region's pixels have a wrong or the right colour.

    "colour leak" counts colours named only by other captions of the image, "colour fit" those named by the region's
    own. Both are means over the regions whose caption names a colour, in images where another caption names another.
    Raises UserError if there is no such region.
    """
    leaks, fits = RegionMean(), RegionMean()
    for item in items:
        layout = layout_of(item, "colour leak").flattened()
        named = [named_colours(caption) for caption in layout.captions]
        masks = resize_masks(layout.masks, item.image.shape[:2])
        margin = round(MARGIN * min(item.image.shape[:2]) / 512)
        for index, (mask, own) in enumerate(zip(masks, named, strict=True)):
            others = set().union(*named[:index], *named[index + 1 :]) - own
            core = shift_border(mask, -margin)
            core = core if core.any() else mask
            if not (own and others and core.any()):
                continue
            shown = np.bincount(nearest_colours(item.image[core]), minlength=len(COLOURS)) / core.sum()
            shares = dict(zip(COLOURS, shown, strict=True))
            leaks.add(item.key, sum(shares[colour] for colour in others))
            fits.add(item.key, sum(shares[colour] for colour in own))
    return [leaks.result("colour leak", source, "lower"), fits.result("colour fit", source, "higher")]


def caption_leak(items: Iterable[Item], clip: Clip, source: str = GENERATED) -> Result:
    """Measure the share of regions that, cut out, fit another caption better than their own.

    CLIP judges. Chance is (N - 1) / N for N different captions. Means over regions in images with several captions.
    Raises UserError if there is no such image.
    """
    leaks = RegionMean()
    for item in items:
        layout = layout_of(item, "caption leak").flattened()
        masks = resize_masks(layout.masks, item.image.shape[:2])
        shown = [index for index, mask in enumerate(masks) if mask.any()]
        captions = [layout.captions[index] for index in shown]
        if len(set(captions)) < 2:
            continue
        fit = clip.of_images([cut_out(item.image, masks[index]) for index in shown]) @ clip.of_captions(captions).T
        for leaked in taken_for_another(fit, captions):
            leaks.add(item.key, leaked)
    return leaks.result("caption leak", source, "lower")


def taken_for_another(fit: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Say which regions fit a caption with other words best, bool [N].

    fit [N, N]: rows are regions, columns captions.
    """
    best = fit.argmax(1)
    return np.array([captions[chosen] != own for chosen, own in zip(best, captions, strict=True)])


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut out the box around a mask with a margin, uint8 [h, w, 3], grey outside the mask."""
    box = box_with_margin(mask)
    return np.where(mask[box][..., None], image[box], np.uint8(GREY))
