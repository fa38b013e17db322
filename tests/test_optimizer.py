"""Trained parameters and their running average."""

import pytest
import torch
from torch import nn

from seg2any.system.errors import UserError
from seg2any.training.optimizer import Average, Trainable


def parameters(*sizes):
    return dict(nn.Sequential(*(nn.Linear(2, size) for size in sizes)).named_parameters())


def test_trained_parameters_are_copied_by_name_or_refused():
    mine, others = parameters(3), parameters(3)
    state = {name: value.clone() for name, value in Trainable(mine).state_dict().items()}
    assert set(state) == {"0.weight", "0.bias"}
    Trainable(others).load_state_dict(state)
    assert torch.equal(others["0.weight"], mine["0.weight"])
    with pytest.raises(UserError, match="^checkpoint: "):
        Trainable(parameters(3, 3)).load_state_dict(state)
    with pytest.raises(UserError, match="^checkpoint: 0.weight "):
        Trainable(parameters(4)).load_state_dict(state)


def test_average_by_hand():
    parameter = nn.Parameter(torch.tensor([0.0]))
    average = Average([parameter], decay=0.15)
    expected = 0.0
    for update, value in enumerate([1.0, 3.0, 2.0], start=1):
        parameter.data.fill_(value)
        average.update()
        decay = min(0.15, update / (10 + update))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert parameter.item() == pytest.approx(expected)
    assert parameter.item() == 2.0

    restored = Average([nn.Parameter(torch.tensor([9.0]))], decay=0.15)
    restored.load_state_dict(average.state_dict())
    assert restored.values[0].item() == pytest.approx(expected) and restored.updates == 3


def test_average_with_decay_zero_is_the_parameter():
    parameter = nn.Parameter(torch.tensor([5.0]))
    average = Average([parameter], decay=0)
    parameter.data.fill_(6.0)
    average.update()
    with average.in_place():
        assert parameter.item() == 6.0
