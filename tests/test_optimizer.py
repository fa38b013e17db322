"""Trained parameters and their running average."""

import warnings

import pytest
import torch
from torch import nn

from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.optimizer import Average, Trainable, make_schedule


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


@pytest.mark.parametrize(
    ("name", "warmup", "steps", "told"),
    [("cosine", 100, 8, True), ("linear", 8, 8, True), ("cosine", 7, 8, False), ("constant", 100, 8, False)],
)
def test_a_warm_up_longer_than_the_run_is_told(name: str, warmup: int, steps: int, told: bool):
    config = Config()
    config.scheduler.lr_scheduler, config.scheduler.lr_warmup_steps = name, warmup
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=1.0), steps)
    lines = [str(one.message) for one in caught if "lr_warmup_steps" in str(one.message)]
    assert len(lines) == told
    if told:
        assert f"the {warmup} steps of the warm-up are not over when the run ends at step {steps}" in lines[0]
