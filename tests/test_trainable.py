"""The parameters that are trained, and their running average."""

import pytest
import torch
from torch import nn

from seg2any.system.errors import UserError
from seg2any.training.trainable import Average, Trainable


def test_trainable_keeps_only_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 3))
    state = {name: value.clone() for name, value in Trainable(model).state_dict().items()}
    assert set(state) == {"1.weight", "1.bias"}
    other = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 3))
    Trainable(other).load_state_dict(state)
    assert torch.equal(other[1].weight, model[1].weight)
    with pytest.raises(UserError, match="other layers"):
        Trainable(nn.Linear(2, 3)).load_state_dict(state)
    with pytest.raises(UserError, match=r"1.weight is \[3, 2\] there, \[4, 2\] here"):
        Trainable(nn.Sequential(nn.Identity(), nn.Linear(2, 4))).load_state_dict(state)


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
