"""Compare the counts of preflight with what `draw_layout` keeps, for every setting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from seg2any.attention.settings import ConditionSettings
from seg2any.diffusion.prepare import draw_layout
from seg2any.generate.preflight import ModelFacts, check_layout
from seg2any.layout import Layout
from seg2any.layout.overlap import OVERLAPS

MODEL = ModelFacts(pixels_per_token=16, count_tokens=len)
SIZES = ((64, 96), (128, 128))  # of the image; masks have other sizes
CHOICES = {
    "attention_mask_method": ("hard", "base", "place", "none"),
    "region_assignment": ("nearest", "coverage"),
    "is_use_cond_token": (True, False),
    "is_filter_cond_token": (True, False),
    "cond_scale_factor": (1, 2),
}
COMBINATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


def random_layout(rng: np.random.Generator) -> Layout:
    """One to four boxes of random size, some overlapping, some too small for a token."""
    height, width = rng.integers(40, 200, 2)
    masks = np.zeros((rng.integers(1, 5), height, width), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        mask[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = True
    return Layout(masks, ("a region",) * len(masks), "an image", overlap=str(rng.choice(OVERLAPS)))


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=lambda chosen: "-".join(map(str, chosen.values())))
def test_preflight_counts_what_is_drawn(chosen: dict):
    settings, rng = ConditionSettings(**chosen), np.random.default_rng(5)
    for size in SIZES:
        for _ in range(3):
            layout = random_layout(rng)
            drawn = draw_layout(layout.visible, size, MODEL.pixels_per_token, settings)
            report = check_layout(layout, size, settings, MODEL)
            assert report.contour_tokens == (0 if drawn.kept is None else int(drawn.kept.sum()))
            if len(drawn.masks) == len(layout.masks):
                assert [region.image_tokens for region in report.regions] == drawn.masks.sum((1, 2)).tolist()
