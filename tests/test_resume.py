"""A run killed repeatedly ends as an undisturbed run, bit by bit: losses, samples, weights."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal

import pytest
import torch

from seg2any.system.errors import UserError
from seg2any.training import checkpoint
from seg2any.training.state_file import read_state
from tests import forked, tiny_run
from tests.tiny_run import same

pytestmark = pytest.mark.slow

STEPS = 4
CACHES = ("--trainer.cache_text=all", "--trainer.cache_latents=true")
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
VALIDATION = (
    *("--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 1}"),
    *("--trainer.validation_loss_steps=1", "--trainer.num_validation_images=0"),
)
CASES = [  # options, processes, launcher, kills
    pytest.param(VALIDATION, 1, forked.DDP, 2, id="alone"),
    pytest.param(VALIDATION, 1, forked.DDP, 5, id="alone, often", marks=pytest.mark.long),
    pytest.param(CACHES, 1, forked.DDP, 2, id="caches"),
    pytest.param(CACHES, 2, forked.DDP, 2, id="ddp"),
    pytest.param(CACHES, 2, forked.DDP, 4, id="ddp, often", marks=pytest.mark.long),
    pytest.param((), 2, forked.ZERO2, 2, id="zero2", marks=needs_deepspeed),
]


def command(model, folder, *options):
    steps = (f"--trainer.max_train_steps={STEPS}", "--trainer.checkpointing_steps=1")
    return [*tiny_run.arguments(model, folder), *steps, "--scheduler.lr_scheduler=cosine", *options]


def train(arguments, trace, rank, killed_at=None):
    """Train to the end, or until event number `killed_at` kills the process.

    `trace` gets every micro-step's samples and loss.
    """
    torch.manual_seed(random.SystemRandom().getrandbits(60))  # every process starts with its own random state
    trainer = tiny_run.trainer(arguments)
    loss, seen = trainer.task.loss, tiny_run.note_batches(trainer)

    def traced_loss(*arguments):
        count()
        value = loss(*arguments)
        row = [f"process {rank}, micro-step {trainer.sampler.taken}", seen[-1], value.item().hex()]
        with open(trace, "a") as file:
            file.write(json.dumps(row) + "\n")
        return value

    trainer.task.loss = traced_loss
    count = watch(killed_at)
    trainer.fit()
    trace.with_suffix(f".events{rank}").write_text(str(count.events))


def watch(killed_at):
    """Count every loss and every moment of writing a file as an event.

    At event number `killed_at` this process kills itself.
    """

    def count(*_):
        count.events += 1
        if count.events == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    count.events = 0

    def counted(module, name):
        original = getattr(module, name)
        setattr(module, name, lambda *arguments, **named: (count(), original(*arguments, **named))[1])

    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (checkpoint, "write_state")):
        counted(module, name)
    return count


def traced(path):
    """Read samples and loss of every micro-step; repeated micro-steps have to be equal."""
    steps = {}
    for line in path.read_text().splitlines():
        step, *content = json.loads(line)
        assert steps.setdefault(step, content) == content
    return steps


@pytest.mark.same_numbers("a run or a folder after a kill, and in one go | equal")
@pytest.mark.parametrize(("options", "processes", "launcher", "kills"), CASES)
def test_a_run_killed_anywhere_ends_as_the_uninterrupted_one(options, processes, launcher, kills, tiny_model, tmp_path):
    whole = command(tiny_model, tmp_path / "whole", *options)
    log = tmp_path / "log.txt"
    statuses = forked.run(lambda rank: train(whole, tmp_path / "whole.trace", rank), log, processes, launcher)
    assert statuses == [0] * processes, log.read_text()[-4000:]

    parts = [*command(tiny_model, tmp_path / "parts", *options), "--resume_from_checkpoint=latest"]
    per_step = [int((tmp_path / f"whole.events{rank}").read_text()) // STEPS for rank in range(processes)]
    assert per_step[0] > 15  # 2 losses; the other events belong to writing a checkpoint
    moments = random.Random(len(options) + processes)
    for kill in range(kills):
        # First within the first step or its checkpoint, then each time within the second step of that life.
        victim = moments.randrange(processes)
        moment = moments.randint(1, per_step[victim]) + per_step[victim] * min(kill, 1)
        statuses = life(parts, tmp_path, processes, launcher, victim, moment)
        assert statuses[victim] == -signal.SIGKILL, log.read_text()[-4000:]
    assert life(parts, tmp_path, processes, launcher) == [0] * processes, log.read_text()[-4000:]
    starts = [row["step"] for row in tiny_run.rows(tmp_path / "parts" / "run") if "run" in row]
    assert len(set(starts)) > kills / 2, starts

    trace = traced(tmp_path / "whole.trace")
    assert trace == traced(tmp_path / "parts.trace") and len(trace) == 2 * STEPS * processes
    runs = [tmp_path / name / "run" for name in ("whole", "parts")]
    assert tiny_run.losses(runs[0]) == tiny_run.losses(runs[1]) and len(tiny_run.losses(runs[0])) == STEPS
    for step in (1, STEPS):  # the first was written before a kill, the last after all of them
        states = [read_state(run / f"checkpoint-{step}" / checkpoint.STATE) for run in runs]
        assert same(*states) and len(states[0]["optimizer"]) == len(states[0]["adapters"]) > 100
        files = [sorted((run / f"checkpoint-{step}").rglob("*.safetensors")) for run in runs]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
        assert len(files[0]) == 3
    left = {path.name for path in runs[1].iterdir() if path.name.startswith("checkpoint")}
    assert left == {f"checkpoint-{step}" for step in range(1, STEPS + 1)}


def life(arguments, folder, processes, launcher, victim=None, moment=None):
    """Run to the end, or until process `victim` is killed at event `moment`.

    Returns the exit statuses.
    """

    def one(rank):
        train(arguments, folder / "parts.trace", rank, moment if rank == victim else None)

    return forked.run(one, folder / "log.txt", processes, launcher)


def test_another_number_of_samples_in_a_step_or_data_set_is_refused(tiny_model, tmp_path):
    two = [*command(tiny_model, tmp_path), "--trainer.max_train_steps=1"]
    log = tmp_path / "log.txt"
    assert forked.run(lambda rank: tiny_run.trainer(two).fit(), log, 2) == [0, 0], log.read_text()[-4000:]
    resumed = [*two, "--resume_from_checkpoint=latest"]
    with pytest.raises(UserError, match="^trainer.train_batch_size: "):
        tiny_run.trainer([*resumed, "--trainer.train_batch_size=3"]).fit()

    def other_data(rank):
        with pytest.raises(UserError, match="data.train's content: .* in the checkpoint, .* now"):
            tiny_run.trainer([*resumed, "--data.train.params={n_scenes: 11, entities: [1, 3], seed: 5}"]).fit()

    assert forked.run(other_data, log, 2) == [0, 0], log.read_text()[-4000:]
