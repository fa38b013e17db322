"""Connector, projectors and the changes of a grid."""

from __future__ import annotations

import torch

from seg2any.segment.xsam.connector import Branch, Connector, Projector, pad_to_even, shuffle
from tests.parity_xsam.recorded import Case, close, tensors_of

FILE = "connector_projector"


def shuffle_case(case: Case) -> None:
    x, scale = case.x["input"], case.about["scale_factor"]
    first = case.about["data_format"] == "channels_first"
    found = shuffle(x.permute(0, 2, 3, 1) if first else x, scale)
    assert torch.equal(found.permute(0, 3, 1, 2) if first else found, case.x["output"])


def pad_case(case: Case) -> None:
    assert torch.equal(pad_to_even(case.x["input"]), case.x["output"])


@torch.no_grad()
def branch_case(case: Case) -> None:
    about = case.about
    branch = Branch(about["in_channels"], about["hidden_channels"], about["scale_factor"])
    branch.load_state_dict(tensors_of(FILE, f"{about['weights']}/"))
    close(branch(case.x["input"]), case.x["output"])


@torch.no_grad()
def connector_case(case: Case) -> None:
    inputs, weights = case.numbered("input"), tensors_of(FILE, "connector/weights/")
    hidden = weights["model.0.model.0.weight"].shape[0]
    connector = Connector(inputs[0].shape[-1], hidden, case.about["scale_factor"])
    connector.load_state_dict(weights)
    for found, recorded in zip(connector(inputs), case.numbered("output"), strict=True):
        close(found, recorded)
        assert found.shape[1] == recorded.shape[1]


@torch.no_grad()
def projector_case(case: Case) -> None:
    about, weights = case.about, tensors_of(FILE, f"{case.name}/weights/")
    block = round(1 / about.get("downsample_ratio", 1))
    projector = Projector(about["visual_hidden_size"], about["llm_hidden_size"], block, about["depth"])
    projector.load_state_dict(weights)
    close(projector(case.x["input"]), case.x["output"])


CHECKS = {
    "pixel_shuffle_": shuffle_case,
    "pad_": pad_case,
    "connector_layer_": branch_case,
    "connector": connector_case,
    "visual_projector": projector_case,
    "seg_projector": projector_case,
    "llm_projector": projector_case,
    "depth_": projector_case,
}
