"""Pictures and regions among the tokens of text."""

from __future__ import annotations

import pytest
import torch

from seg2any.segment.xsam.splice import PICTURE, REGION, Spliced, Tokens, splice
from tests.parity_xsam.recorded import Case, same, tensors_of

FILE = "splice"


def spliced(case: Case) -> Spliced:
    x, weight = case.x, tensors_of(FILE, "embedding_weight")[""]
    tokens = Tokens(*(x.get(f"in_{name}") for name in ("input_ids", "attention_mask", "labels", "cond_ids", "seg_ids")))
    visual, grid = x.get("in_pixel_values"), x.get("in_seg_pixel_values")
    pictures = () if visual is None else list(visual if grid is None else torch.cat([visual, grid], 1))
    regions = case.numbered("in_vprompt_feats") or None
    return splice(tokens, lambda ids: weight[ids], pictures, regions)


FIELDS = {
    "attention_mask": "mask",
    "position_ids": "positions",
    "labels": "labels",
    "input_ids": "ids",
    "cond_ids": "cond_ids",
    "seg_ids": "seg_ids",
}


def plain_case(case: Case) -> None:
    found = spliced(case)
    assert torch.equal(found.embeddings, case.x["out_inputs_embeds"])
    compare_numbers(case, found)


def compare_numbers(case: Case, found: Spliced) -> None:
    for name, ours in FIELDS.items():
        if f"out_{name}" in case.x:
            same(getattr(found, ours), case.x[f"out_{name}"])
        elif f"in_{name}" not in case.x and ours not in ("mask", "positions", "ids"):
            assert getattr(found, ours) is None


def lacking_case(case: Case) -> None:
    """Published: markers without pictures pass; here they are refused."""
    assert "out_inputs_embeds" not in case.x and (case.x["in_input_ids"] == PICTURE).any()
    with pytest.raises(ValueError, match="0 pictures for"):
        spliced(case)


def other_picture_case(case: Case) -> None:
    """Published: a conversation without a picture does not use up the one beside it; here each has its own."""
    found = spliced(case)
    compare_numbers(case, found)
    theirs, shifted = case.x["out_inputs_embeds"], False
    for row, marked in enumerate((case.x["in_input_ids"] == PICTURE).any(1).tolist()):
        inside = found.ids[row] == PICTURE
        assert torch.equal(found.embeddings[row][~inside], theirs[row][~inside])
        if marked:
            own = torch.cat([case.x["in_pixel_values"][row], case.x["in_seg_pixel_values"][row]])
            assert torch.equal(found.embeddings[row][inside], own)
            shifted = shifted or not torch.equal(theirs[row][inside], own)
    assert shifted


def order_case(case: Case) -> None:
    """Published: markers that touch each other or stand first change places with text; here the order is kept."""
    found, theirs = spliced(case), case.x["out_inputs_embeds"]
    assert found.embeddings.shape == theirs.shape

    def sorted_rows(x: torch.Tensor) -> list[list[float]]:
        return sorted(x[0].tolist())

    assert sorted_rows(found.embeddings) == sorted_rows(theirs)
    order = torch.unique_consecutive(found.ids[0])
    assert order.tolist() == torch.unique_consecutive(case.x["in_input_ids"][0]).tolist()
    text = case.x["in_input_ids"][0]
    weight = tensors_of(FILE, "embedding_weight")[""]
    kept = text[(text != PICTURE) & (text != REGION)]
    assert torch.equal(found.embeddings[0][found.ids[0] >= 0], weight[kept])


def picture_alone_case(case: Case) -> None:
    """Published: fails; here the picture is all there is."""
    assert "error" in case.about
    found = spliced(case)
    assert torch.equal(found.embeddings, torch.cat([case.x["in_pixel_values"], case.x["in_seg_pixel_values"]], 1))


def splice_case(case: Case) -> None:
    """Check a case by what it is given, whatever its name."""
    pictured = (case.x["in_input_ids"] == PICTURE).any(1).tolist()
    if "error" in case.about:
        picture_alone_case(case)
    elif "out_inputs_embeds" not in case.x:
        lacking_case(case)
    elif case.about["order_defect"]:
        order_case(case)
    elif pictured != sorted(pictured, reverse=True):  # a conversation without a picture stands before one with
        other_picture_case(case)
    else:
        plain_case(case)


CHECKS = {"": splice_case}
