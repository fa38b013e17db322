"""Vectors of visual prompts."""

from __future__ import annotations

import pytest
import torch

from seg2any.segment.xsam.regions import region_vectors
from tests.parity_xsam.recorded import Case, close

FILE = "region_sampler"


def vectors_case(case: Case) -> None:
    orders = iter(case.drawn("randperm"))
    points, recorded = case.about["num_sample_point"], case.about["outputs"]
    for number, (features, masks) in enumerate(zip(case.x["features"], case.numbered("masks"), strict=True)):
        if recorded[number] is None:
            assert not len(masks)
            continue
        found = region_vectors(features, masks, points, lambda n: next(orders))
        close(found, case.x[f"output_{number}"])
    assert next(orders, None) is None


def empty_case(case: Case) -> None:
    assert "error" in case.about
    with pytest.raises(ValueError, match="no pixel"):
        region_vectors(torch.zeros(4, 3), torch.zeros(1, 5, 5))


CHECKS = {"all_zero_mask": empty_case, "": vectors_case}
