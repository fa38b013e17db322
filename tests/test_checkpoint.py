import os
import time

import pytest
import torch
from torch import nn

from seg2any.errors import UserError
from seg2any.training.checkpoint import STATE, Average, Checkpoints, Identity, Trainable
from seg2any.training.state_file import write_state


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
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path).load(str(state.parent))


def test_a_state_with_one_wrong_byte_is_damaged(tmp_path):
    def write(folder):
        pass

    state = Checkpoints(tmp_path).save(1, write, {"weights": {"w": torch.arange(100.0)}}) / STATE
    content = bytearray(state.read_bytes())
    content[-7] ^= 1
    state.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path).load(str(state.parent))


@pytest.mark.parametrize("size", [None, 0, 7])
def test_a_checkpoint_whose_adapters_are_gone_or_cut_is_damaged(tmp_path, size):
    def write(folder):
        (folder / "default").mkdir()
        (folder / "default" / "weights").write_bytes(b"12345678")

    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        adapter = checkpoints.save(step, write, {"number": {"value": step}}) / "default" / "weights"
    adapter.unlink() if size is None else os.truncate(adapter, size)
    with pytest.warns(UserWarning, match="checkpoint-2/default/weights: missing or cut short"):
        assert checkpoints.load("latest")[1] == {"number": {"value": 1}}


def test_a_state_that_is_no_mapping_is_damaged(tmp_path):
    path = tmp_path / "checkpoint-1" / STATE
    path.parent.mkdir()
    write_state(path, [])
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path).load(str(path.parent))


def test_latest_says_so_if_all_are_damaged(tmp_path):
    (save(Checkpoints(tmp_path), 1) / STATE).write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="every checkpoint .* is damaged"):
        Checkpoints(tmp_path).load("latest")


def test_rotation_keeps_what_was_just_written_before_a_damaged_later_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=1)
    save(Checkpoints(tmp_path), 2)
    (save(Checkpoints(tmp_path), 9) / STATE).write_bytes(b"")
    save(checkpoints, 3)
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_a_save_removes_what_killed_ones_left(tmp_path):
    for left in (".checkpoint-1.01234567.tmp", ".checkpoint-1.01234567.old"):
        (tmp_path / left / "default").mkdir(parents=True)
    save(Checkpoints(tmp_path), 2)
    assert os.listdir(tmp_path) == ["checkpoint-2"]


def test_check_refuses_before_anything_is_loaded(tmp_path):
    mine, other = save(Checkpoints(tmp_path / "mine"), 1), save(Checkpoints(tmp_path / "other"), 1)
    checkpoints = Checkpoints(tmp_path / "mine")
    for allowed in ("latest", str(mine)):
        checkpoints.check(allowed)
    Checkpoints(tmp_path / "new").check(str(other))
    Checkpoints(tmp_path / "new").check(None)
    for wanted in (None, str(other)):
        with pytest.raises(UserError, match="mine holds checkpoints of another run"):
            checkpoints.check(wanted)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        checkpoints.check("nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="project.output_dir: .* cannot be written"):
        Checkpoints(tmp_path / "file" / "run").check(None)


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
