"""Distributed training: two processes (DDP, ZeRO-2 over gloo) match one process."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file

from seg2any.system.errors import UserError
from seg2any.training import accelerator, config, strategy
from tests import forked, tiny_run

pytestmark = pytest.mark.slow

# Noise belongs to the sample, so only the order of sums differs. LoRA dropout draws per process: it is off. A large
# epsilon keeps Adam from dividing rounding errors by each other; half of the batches lose their condition tokens, so
# that one process often has no gradient for `cond` while the other has.
COMPARABLE = (
    *("--model.lora_dropout=0", "--optimizer.adam_epsilon=1e-3", "--trainer.learning_rate=3e-3"),
    *("--trainer.cond_dropout=0.5", "--trainer.max_train_steps=4", "--trainer.checkpointing_steps=2"),
)
KINDS = {"torchrun": "MULTI_CPU", "deepspeed": "DEEPSPEED"}
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
LAUNCHERS = [
    pytest.param("torchrun", id="ddp"),
    pytest.param("deepspeed", id="zero2", marks=needs_deepspeed),
]


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """Train in one process with batches of 4.

    It sees as many samples as two processes with batches of 2.
    """
    folder = tmp_path_factory.mktemp("alone")
    tiny_run.fit(command(tiny_model, folder, batch=4))
    tiny_run.forget_accelerate()
    return folder / "run"


def command(model, folder, batch=2):
    return [*tiny_run.arguments(model, folder), *COMPARABLE, f"--trainer.train_batch_size={batch}"]


def weights(checkpoint):
    files = sorted(checkpoint.glob("*/pytorch_lora_weights.safetensors"))
    assert [file.parent.name for file in files] == ["cond", "default"]
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same_run(ours, theirs, tolerance):
    first, second = tiny_run.losses(ours), tiny_run.losses(theirs)
    assert first.keys() == second.keys() == {1, 2, 3, 4}
    assert max(abs(first[step] - second[step]) for step in first) <= max(tolerance, 1e-5)
    for step in (2, 4):
        a, b = weights(ours / f"checkpoint-{step}"), weights(theirs / f"checkpoint-{step}")
        assert a.keys() == b.keys()
        assert max((a[name] - b[name]).abs().max().item() for name in a) <= tolerance
    moved = [name for name, value in weights(ours / "checkpoint-4").items() if "lora_B" in name and value.abs().max()]
    assert any(name.startswith("cond/") for name in moved) and any(name.startswith("default/") for name in moved)


@pytest.mark.same_numbers("two processes, and one with their batches together | 1e-6")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_make_the_updates_of_one_with_their_batches_together(alone, tiny_model, tmp_path, launcher):
    log = tmp_path / "log.txt"
    environment = forked.ZERO2 if launcher == "deepspeed" else forked.DDP
    statuses = forked.run(lambda rank: tiny_run.fit(command(tiny_model, tmp_path)), log, 2, environment)
    assert statuses == [0, 0], log.read_text()[-4000:]
    for run in tiny_run.machines(tmp_path / "run"):
        assert (run["processes"], run["distributed_type"]) == (2, KINDS[launcher])
    assert_same_run(tmp_path / "run", alone, 1e-6)
    assert_state_is_the_same(tmp_path / "run", alone)


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_themselves_start_two_processes(alone, tiny_model, tmp_path, launcher):
    tiny_run.finish(tiny_run.start(command(tiny_model, tmp_path), launcher))
    for run in tiny_run.machines(tmp_path / "run"):
        assert (run["processes"], run["distributed_type"]) == (2, KINDS[launcher])
    assert_same_run(tmp_path / "run", alone, 1e-6)


def assert_state_is_the_same(ours, theirs):
    """Compare two training states.

    The optimizer's moments are included, under the names they have without sharding.
    """
    from seg2any.training.state_file import read_state

    first, second = (read_state(run / "checkpoint-4" / "training_state.safetensors") for run in (ours, theirs))
    assert first["optimizer"].keys() == second["optimizer"].keys() == first["adapters"].keys()
    for name, moments in second["optimizer"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(first["optimizer"][name][key], moments[key], rtol=1e-4, atol=1e-7)
        assert float(first["optimizer"][name]["step"]) == float(moments["step"]) == 4


@pytest.mark.parametrize(
    ("stage", "message"),
    [(3, "ZeRO stage 3"), (0, "ZeRO stage 0")],
)
def test_other_stages_of_zero_are_refused_with_the_reason(stage, message):
    with pytest.raises(UserError, match=message) as caught:
        strategy._configure_deepspeed({"zero_optimization": {"stage": stage}}, config.load([]))
    assert "\n" not in str(caught.value) and "config/deepspeed_stage2.yaml" in str(caught.value)


@pytest.mark.parametrize("kind", ["FSDP", "MEGATRON_LM"])
def test_launchers_that_cut_adapters_are_refused_with_the_reason(monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")  # as accelerate's launcher does
    with pytest.raises(UserError, match=f"^launcher: {kind} .*trainer.shard_base=true"):
        accelerator.make_accelerator(config.load(["--mixed_precision=no"]))
