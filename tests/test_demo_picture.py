"""The picture of the demo: its captions beside what a judge sees in it."""

import re

import numpy as np
import pytest
from PIL import Image

from examples.shapes.make.picture import SHOWN, cut, draw, layouts
from seg2any.evaluation.shapes.judge import judge
from tests.golden_root import REPOSITORY

PICTURE = REPOSITORY / "docs" / "demo.png"
ROW = re.compile(r"^\| (five|eight|badges) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def shown():
    with Image.open(PICTURE) as picture:
        return picture.convert("RGB")


def test_the_page_says_which_captions_the_judge_confirms_in_the_picture(shown):
    """Compare the page's table of confirmed and other captions with the judge's verdicts on the picture itself."""
    page = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = {name: (_captions(right), _captions(wrong)) for name, right, wrong in ROW.findall(page)}
    found = {}
    for name, layout, image in zip(SHOWN, layouts(), cut(shown, layouts()), strict=True):
        regions = judge(np.asarray(image), layout).regions
        right = [r.colour_right and r.pattern_right and r.iou > 0.85 for r in regions]
        found[name] = tuple(
            sorted(region.caption for region, good in zip(regions, right, strict=True) if good is wanted)
            for wanted in (True, False)
        )
    assert found == table


def test_the_picture_holds_the_layouts_and_their_captions(shown):
    """Draw the picture again from the images cut out of it: contours, masks and captions are those of the layouts."""
    again = draw(layouts(), cut(shown, layouts()))
    assert again.size == shown.size
    assert np.abs(np.asarray(again, np.int16) - np.asarray(shown)).max() <= 40  # of the edges of letters


def _captions(cell: str) -> list[str]:
    return sorted(part.strip() for part in cell.split(",") if part.strip() not in ("", "none"))
