"""Masks given to `Layout` in every form that callers have, against areas known by construction."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, LayoutWarning

FIRST, SECOND = np.zeros((2, 6, 9), bool)
FIRST[1:4, 2:7], SECOND[3:, :5] = True, True
BOTH = np.stack([FIRST, SECOND])
LOGITS = np.where(BOTH, 0.75, -3.0).astype(np.float32)


def picture(mask: np.ndarray, mode: str = "L") -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)


def behind_transparency(mask: np.ndarray) -> Image.Image:
    image = Image.new("RGBA", mask.shape[::-1], (10, 200, 30, 255))
    image.putalpha(picture(mask))
    return image


def turned_file(mask: np.ndarray) -> Image.Image:
    """Save a mask turned by a quarter, with the EXIF tag that turns it back, and open it lazily."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture(np.rot90(mask)).save(file, "PNG", exif=exif)
    return Image.open(file)


FORMS = {
    "uint8 0 and 255": BOTH.astype(np.uint8) * 255,
    "0 and 1": BOTH.astype(np.int64),
    "probabilities": np.where(BOTH, 0.9, 0.1),
    "uint8 with an axis of 1": BOTH[:, None].astype(np.uint8) * 255,
    "bool with an axis of 1": BOTH[:, None],
    "list of bool arrays": [FIRST, SECOND],
    "tuple of uint8 arrays": (FIRST.astype(np.uint8) * 255, SECOND.astype(np.uint8) * 255),
    "list of arrays with an axis of 1": [FIRST[None], SECOND[None].copy()],
    "generator": (mask for mask in BOTH),
    "nested lists of booleans": BOTH.tolist(),
    "nested lists of numbers": (BOTH * 255).tolist(),
    "bool and numbers": [FIRST, SECOND.astype(np.uint8) * 255],
    "bool tensor": torch.from_numpy(BOTH),
    "uint8 tensor": torch.from_numpy(BOTH).to(torch.uint8) * 255,
    "bfloat16 tensor": torch.from_numpy(BOTH).to(torch.bfloat16),
    "tensor with a gradient": torch.from_numpy(BOTH).float().requires_grad_(),
    "tensor of a segmenter": torch.from_numpy(BOTH)[:, None],
    "list of tensors": [torch.from_numpy(FIRST), torch.from_numpy(SECOND)],
    "pictures": [picture(FIRST), picture(SECOND, "RGB")],
    "pictures of one bit": [picture(FIRST, "1"), picture(SECOND, "1")],
    "palette, transparency": [picture(FIRST, "P"), behind_transparency(SECOND)],
    "picture and array": [picture(FIRST), SECOND],
    "turned picture": [turned_file(FIRST), SECOND],
}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_masks_in_every_form(given: object):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = Layout(given, ["a", "b"])
    assert layout.masks.dtype == np.bool_ and (layout.masks == BOTH).all()


@pytest.mark.parametrize("given", [LOGITS, list(LOGITS), torch.from_numpy(LOGITS), [*torch.from_numpy(LOGITS)]])
def test_numbers_of_a_list_are_of_one_kind(given: object):
    """Logits that are nowhere negative in one mask look like probabilities, but for the other mask."""
    values = np.stack([LOGITS[0], np.full((6, 9), 0.25, np.float32)])
    given = type(given)(values) if isinstance(given, list) else values
    with pytest.warns(LayoutWarning, match="logits"):
        assert Layout(given, ["a", "b"]).masks.tolist() == [FIRST.tolist(), np.ones((6, 9), bool).tolist()]


def test_a_bool_array_is_not_copied_and_a_soft_picture_is_cut_in_its_middle():
    assert Layout(BOTH, ["a", "b"]).masks is BOTH
    soft = np.repeat(np.linspace(0, 255, 256, dtype=np.uint8)[None], 40, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayoutWarning)
        assert Layout([Image.fromarray(soft)], ["a"]).masks.sum() == 40 * 128


def test_an_empty_mask_is_allowed_in_every_form():
    empty = np.zeros((6, 9), np.uint8)
    for given in ([empty], [Image.fromarray(empty)], torch.zeros(1, 6, 9)):
        assert not Layout(given, ["a"]).masks.any()


def test_scores_are_taken_as_lists_and_tensors():
    for scores in ([0.5, 1], (0.5, 1.0), torch.tensor([0.5, 1.0])):
        found = Layout(BOTH, ["a", "b"], scores=scores).scores
        assert found.dtype == np.float32 and found.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "empty list, without a size"),
        (None, "masks are NoneType"),
        ("mask.png", "masks are str"),
        ({"a": FIRST}, "masks are dict"),
        (7, "masks are int"),
        (picture(FIRST), "masks are one picture"),
        (np.arange(54).reshape(6, 9), r"masks are int64 \[6, 9\].*`labels == k`"),
        ([np.array([[0, 1, 2]]).repeat(9, 0).repeat(9, 1)], "look like labels"),
        ([FIRST, SECOND[:4]], r"masks\[1\] is 9x4, but masks\[0\] 9x6"),
        ([[[0, 1], [1]]], r"masks\[0\].*different lengths"),
        ([["a", "b"]], r"masks\[0\].*no numbers"),
        ([FIRST.astype(np.uint8), SECOND.astype(np.float32)], "float32 and uint8; give numbers of one type"),
        (np.full((1, 2, 2), np.nan), "NaN"),
        (np.ones((1, 2, 3, 4), np.uint8), r"masks are uint8 \[1, 2, 3, 4\]"),
        (np.zeros((1, 2, 2), complex), "no numbers"),
        ([Image.new("L", (9000, 9000))], "more than 64 megapixels"),
    ],
)
def test_what_is_no_mask_is_one_line(given: object, message: str):
    with pytest.raises(LayoutError, match=message) as caught:
        Layout(given, ["a"], name="cat")
    assert str(caught.value).startswith("layout 'cat'") and "\n" not in str(caught.value)
