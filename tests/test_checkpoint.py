"""Checkpoints: rotation, `latest`, damaged states, and kills or a full disk while saving."""

import os
import resource
import signal

import pytest
import torch

from seg2any.system.errors import UserError
from seg2any.system.files import RUNNING, held
from seg2any.training.checkpoint import STATE, Checkpoints
from seg2any.training.state_file import write_state
from tests.forked import holding


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

    with pytest.raises(UserError, match="checkpoint-1: .*disk full"):
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
        (folder / "default" / "weights.safetensors").write_bytes(b"12345678")

    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        adapter = checkpoints.save(step, write, {"number": {"value": step}}) / "default" / "weights.safetensors"
    adapter.unlink() if size is None else os.truncate(adapter, size)
    with pytest.warns(UserWarning, match="checkpoint-2/default/weights.safetensors"):
        assert checkpoints.load("latest")[1] == {"number": {"value": 1}}


def test_a_state_other_than_a_mapping_is_damaged(tmp_path):
    path = tmp_path / "checkpoint-1" / STATE
    path.parent.mkdir()
    write_state(path, [])
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path).load(str(path.parent))


def test_latest_is_refused_if_all_checkpoints_are_damaged(tmp_path):
    (save(Checkpoints(tmp_path), 1) / STATE).write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="every checkpoint .* is damaged"):
        Checkpoints(tmp_path).load("latest")


def test_rotation_keeps_the_new_checkpoint_and_removes_a_damaged_later_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=1)
    save(Checkpoints(tmp_path), 2)
    (save(Checkpoints(tmp_path), 9) / STATE).write_bytes(b"")
    save(checkpoints, 3)
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_a_save_removes_leftovers_of_killed_saves(tmp_path):
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


def test_latest_that_finds_nothing_is_told_with_the_folder_that_was_meant(tmp_path):
    (tmp_path / "shapes" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "shaped" / "logs").mkdir(parents=True)
    told = Checkpoints(tmp_path / "shpaes").remark("latest")
    assert told == (
        f"latest finds no checkpoint in {tmp_path / 'shpaes'}, so a new run starts there; did you mean "
        f"{tmp_path / 'shapes'}?"
    )
    assert "did you mean" not in Checkpoints(tmp_path / "else").remark("latest")
    assert Checkpoints(tmp_path / "shapes").remark("latest") == ""
    assert Checkpoints(tmp_path / "shpaes").remark(None) == ""


def test_a_path_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        Checkpoints(tmp_path).load("nowhere")


def test_a_killed_save_leaves_the_older_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    if (child := os.fork()) == 0:
        checkpoints.save(2, lambda folder: os.kill(os.getpid(), signal.SIGKILL), {})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(checkpoints.steps()) == [1] and len(os.listdir(tmp_path)) == 2, "what was begun is left behind"
    save(checkpoints, 3)
    assert checkpoints.load("latest")[0].name == "checkpoint-3"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (reading, writing) = os.pipe()
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoints.save(2, lambda folder: None, {"weights": {"w": torch.ones(10_000)}})
        except UserError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    message = os.read(reading, 1000).decode()
    assert "checkpoint-2: cannot be written: " in message and "large" in message
    assert os.listdir(tmp_path) == ["checkpoint-1"]


def test_plain_values_are_read_without_the_tensors(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        state = {"number": {"value": step}, "weights": {"a": torch.ones(4)}}
        checkpoints.save(step, lambda folder: None, state)
    assert checkpoints.plain("latest", "number") == {"value": 2} and checkpoints.plain("latest", "letter") is None
    assert checkpoints.plain(str(tmp_path / "checkpoint-1"), "number") == {"value": 1}
    assert checkpoints.plain(None, "number") is None and Checkpoints(tmp_path / "no").plain("latest", "number") is None
    (tmp_path / "checkpoint-2" / STATE).write_bytes(b"no state")
    assert checkpoints.plain("latest", "number") == {"value": 1}
    (tmp_path / "checkpoint-1" / STATE).unlink()
    assert checkpoints.plain("latest", "number") is None


def test_a_folder_belongs_to_one_run_until_that_ends_or_is_killed(tmp_path):
    run = tmp_path / "run"
    with holding(run / RUNNING):
        for attempt in (lambda: Checkpoints(run).check(None), held(run).__enter__):
            with pytest.raises(UserError, match="another run is writing into .*run; wait for it"):
                attempt()
    Checkpoints(run).check(None)
    with held(run):
        pass
