"""Prompts: their valid contents, and the parts that each segmentation method accepts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from seg2any.segment.sam2 import Sam2Segmenter
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from tests.tiny_judges import tiny_sam2

BOXES = np.array([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
POINTS = np.array([[[0.5, 0.5, 1.0]], [[0.0, 1.0, -1.0]]])
MASKS = np.ones((2, 4, 6), bool)


def test_parts_of_a_prompt_describe_the_same_regions():
    assert Prompt().count is None and Prompt(categories=("sky", "sea")).count is None
    assert Prompt(describe=True).given == ("describe",) and Prompt(question="which is red?").count is None
    whole = Prompt(phrases=["a cat", "a mat"], points=POINTS, boxes=BOXES, masks=MASKS)
    assert whole.count == 2 and whole.captions() == ("a cat", "a mat")
    assert whole.given == ("phrases", "points", "boxes", "masks")
    assert Prompt(boxes=BOXES).captions() == ("region 1", "region 2")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"phrases": ("a cat",), "boxes": BOXES}, "1 phrases, 2 boxes"),
        ({"boxes": BOXES, "masks": MASKS[:1]}, "2 boxes, 1 masks"),
        ({"categories": ("sky",), "boxes": BOXES[:1]}, "categories"),
        ({"describe": True, "phrases": ("a cat",)}, "describe"),
        ({"question": "which?", "categories": ("sky",)}, "categories"),
        ({"question": " "}, "question"),
        ({"phrases": ("a cat", " ")}, "phrases entry 2"),
        ({"categories": (3,)}, "categories entry 1"),
        ({"boxes": BOXES.tolist()}, "boxes"),
        ({"boxes": BOXES[:, :3]}, "boxes"),
        ({"boxes": 64 * BOXES}, "boxes"),
        ({"boxes": BOXES * np.nan}, "boxes"),
        ({"boxes": BOXES[:, ::-1].copy()}, "box"),
        ({"points": POINTS[..., :2]}, "points"),
        ({"points": POINTS + [0, 0, 1]}, "points"),
        ({"points": POINTS + [0, 1, 0]}, "points"),
        ({"masks": MASKS.astype(np.uint8)}, "masks"),
    ],
)
def test_malformed_prompts_are_refused(fields: dict, named: str):
    with pytest.raises(UserError, match=named) as error:
        Prompt(**fields)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Sam2Segmenter:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    tiny_sam2().save_pretrained(folder)
    return Sam2Segmenter(str(folder))


@pytest.mark.parametrize("fields", [{"boxes": BOXES}, {"masks": MASKS}, {"boxes": BOXES, "masks": MASKS}])
def test_sam_answers_boxes_and_masks_with_a_layout(sam: Sam2Segmenter, fields: dict, tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    layout = sam.segment(image, Prompt(phrases=("a cat", "a mat"), **fields))
    assert layout.masks.shape == (2, 64, 64) and layout.captions == ("a cat", "a mat")
    assert layout.scores.shape == (2,) and "SAM 2" in layout.source
    assert sam.segment(image, Prompt(**fields)).captions == ("region 1", "region 2")


@pytest.mark.parametrize("fields", [{}, {"points": POINTS}, {"phrases": ("a cat",)}, {"categories": ("a cat",)}])
def test_sam_refuses_other_prompts(sam: Sam2Segmenter, fields: dict):
    with pytest.raises(UserError, match="SAM 2.* give boxes or masks or boxes and masks"):
        sam.segment(np.zeros((8, 8, 3), np.uint8), Prompt(**fields))
