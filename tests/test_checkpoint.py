import os
import time

import pytest
import torch
from torch import nn

from seg2any.errors import UserError
from seg2any.training.checkpoint import STATE, Average, Checkpoints, Identity, Trainable


def save(checkpoints, step):
    return checkpoints.save(step, lambda folder: (folder / "default").mkdir(), {"number": {"value": step}})


def test_state_comes_back_by_latest_and_by_any_path(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (9, 10):
        save(checkpoints, step)
    path, state = checkpoints.load("latest")
    assert (path.name, state["number"]) == ("checkpoint-10", {"value": 10})
    path, state = Checkpoints(tmp_path / "elsewhere").load(f"{tmp_path}/run/checkpoint-9/")
    assert state["number"] == {"value": 9} and (path / "default").is_dir()
    assert Checkpoints(tmp_path / "elsewhere").load("latest") is None


def test_rotation_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=2)
    for step in (5, 10, 100, 20):
        save(checkpoints, step)
    assert list(checkpoints.steps()) == [20, 100]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-100", "checkpoint-20"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.save(1, lambda folder: None, {"number": {"value": 7}})
    assert checkpoints.load("latest")[1]["number"] == {"value": 7}
    assert os.listdir(tmp_path) == ["checkpoint-1"]


def test_a_failed_save_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Checkpoints(tmp_path).save(1, fail, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"\x00" * 200, None])
def test_latest_passes_over_a_damaged_checkpoint(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2) / STATE
    newest.unlink() if damage is None else newest.write_bytes(damage)
    with pytest.warns(UserWarning, match="damaged checkpoint.*checkpoint-2"):
        path, _ = checkpoints.load("latest")
    assert path.name == "checkpoint-1"
    with pytest.raises(UserError, match="checkpoint-2"):
        checkpoints.load(str(newest.parent))


def test_a_truncated_state_is_damaged(tmp_path):
    state = save(Checkpoints(tmp_path), 1) / STATE
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged"):
        assert Checkpoints(tmp_path).load("latest") is None


def test_a_path_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        Checkpoints(tmp_path).load("nowhere")


def test_a_killed_save_leaves_the_older_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    if (child := os.fork()) == 0:
        checkpoints.save(2, lambda folder: time.sleep(60), {})
    time.sleep(0.3)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert list(checkpoints.steps()) == [1]
    save(checkpoints, 3)
    assert checkpoints.load("latest")[0].name == "checkpoint-3"


def test_identity_refuses_what_changed_and_names_it():
    identity = Identity({"seed": 1, "model.rank": 4})
    identity.load_state_dict({"seed": 1, "model.rank": 4})
    with pytest.raises(UserError, match="model.rank: 8 in the checkpoint, 4 now"):
        identity.load_state_dict({"seed": 1, "model.rank": 8})
    with pytest.raises(UserError, match="seed: None in the checkpoint"):
        identity.load_state_dict({"model.rank": 4})


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
