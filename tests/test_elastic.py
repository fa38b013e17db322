"""One, two and four processes with the same samples in a step are one run, also if it is killed between them."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal

import pytest
import torch

from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training import config
from seg2any.training.elastic import Shares, shares_of
from seg2any.training.task import Randomness
from tests import forked, tiny_run

STEPS = 20


def given(batch_size, accumulation):
    words = (f"--trainer.train_batch_size={batch_size}", f"--trainer.gradient_accumulation_steps={accumulation}")
    return config.load(words)


@pytest.mark.parametrize(
    ("saved", "group", "processes", "used"),
    [  # by hand: smaller batches only where accumulation does not suffice
        ((2, 1, 2), 4, 2, (2, 1, 2)),
        ((2, 1, 2), 4, 1, (2, 2, 1)),
        ((2, 1, 2), 4, 4, (1, 1, 4)),
        ((4, 4, 2), 32, 4, (4, 2, 4)),
        ((4, 1, 3), 12, 2, (3, 2, 2)),
        ((6, 2, 1), 6, 3, (2, 2, 3)),  # groups of an older run: 4 would not divide 6
    ],
)
def test_a_config_goes_on_with_its_samples_in_a_step(saved, group, processes, used):
    saved, used = Shares(*saved), Shares(*used)
    settings = given(saved.batch_size, saved.accumulation)
    found, remembered = shares_of(settings, saved, group, processes)
    assert found == used and found.samples == saved.samples
    # The next start with the same config finds the same again, on any number of processes.
    assert shares_of(settings, remembered, group, processes) == (found, remembered)
    assert shares_of(settings, remembered, group, saved.processes)[0] == saved


def test_what_cannot_go_on_says_which_value_to_give():
    with pytest.raises(UserError, match="^launcher: .* 1, 2, 4$"):
        shares_of(given(2, 1), Shares(2, 1, 2), 4, 3)
    for wrong in (given(4, 2), given(3, 1)):
        with pytest.raises(UserError, match="^trainer.train_batch_size: .*=2 .*gradient_accumulation_steps=2$") as told:
            shares_of(wrong, Shares(2, 1, 2), 4, 1)
        assert "\n" not in str(told.value)
    assert shares_of(given(4, 1), Shares(2, 1, 2), 4, 1) == (Shares(4, 1, 1), Shares(4, 1, 1))  # the same number
    assert shares_of(given(4, 2), None, 0, 1) == (Shares(4, 2, 1), Shares(4, 2, 1))  # a new run


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(2, 1, 4), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_a_sample_has_its_noise_and_a_batch_its_dropout_wherever_they_are_computed(batch_size, accumulation, processes):
    alone, ranks = Randomness(5, 8), [Randomness(5, batch_size, Process(n, processes)) for n in range(processes)]
    batches = Randomness(5, batch_size)
    for step in range(2):
        micro_steps = [(m, n) for m in range(step * accumulation, (step + 1) * accumulation) for n in range(processes)]
        found = [g.initial_seed() for m, n in micro_steps for g in ranks[n].generators(m)]
        assert found == [g.initial_seed() for g in alone.generators(step)]
        for m, n in micro_steps:
            ranks[n].seed_layers(m)
            here = torch.rand(3)
            batches.seed_layers(m * processes + n)
            assert torch.equal(here, torch.rand(3))


def command(model, folder, batch_size, accumulation, *options):
    return [
        *tiny_run.arguments(model, folder),
        *("--model.lora_dropout=0", f"--trainer.train_batch_size={batch_size}", "--trainer.learning_rate=1e-3"),
        *(f"--trainer.gradient_accumulation_steps={accumulation}", f"--trainer.max_train_steps={STEPS}"),
        *("--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 3}", "--trainer.checkpointing_steps=5"),
        *("--trainer.validation_loss_steps=10", "--trainer.num_validation_images=0", *options),
    ]


def train(arguments, trace, act=None):
    """Train; `trace` gets the sample and the seed of its noise for each sample of a step.

    act  called with the number of every loss of this process, to kill it
    """
    trainer = tiny_run.trainer(arguments)
    loss, seen = trainer.task.loss, tiny_run.note_batches(trainer)

    def traced_loss(network, samples, generators):
        if act:
            act(len(seen))
        rows = [[trainer.progress.step, g.initial_seed(), key] for g, key in zip(generators, seen[-1], strict=True)]
        with open(trace, "a") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows))
        return loss(network, samples, generators)

    trainer.task.loss = traced_loss
    trainer.fit()


def drawn(trace):
    """Return {step: {seed of the noise: sample}}; repeated steps have to be equal."""
    steps = {}
    for step, seed, key in map(json.loads, trace.read_text().splitlines()):
        assert steps.setdefault(step, {}).setdefault(seed, key) == key
    return steps


def assert_one_run(ours, theirs):
    """Compare samples, noise, losses and validation of two folders' runs."""
    samples = drawn(ours / "trace")
    assert samples == drawn(theirs / "trace") and [len(step) for step in samples.values()] == [4] * STEPS
    first, second = tiny_run.losses(ours / "run"), tiny_run.losses(theirs / "run")
    assert first.keys() == second.keys() == set(range(1, STEPS + 1))
    assert first[1] == pytest.approx(second[1], rel=1e-6)
    assert [first[step] for step in sorted(first)] == pytest.approx([second[step] for step in sorted(first)], rel=1e-4)
    found = [[row["val_loss"] for row in tiny_run.rows(run / "run") if "val_loss" in row] for run in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], rel=1e-4) and len(found[0]) == STEPS // 10


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """Train in one process with batches of 4."""
    folder = tmp_path_factory.mktemp("alone")
    assert fit(folder, 1, command(tiny_model, folder, 4, 1)) == [0], (folder / "log.txt").read_text()[-4000:]
    return folder


def fit(folder, processes, arguments, act=None, launcher=forked.DDP):
    """Run `train` in real processes and return their exit statuses; `act(rank)` makes what `train` calls."""

    def one(rank):
        train(arguments, folder / "trace", act and act(rank))

    return forked.run(one, folder / "log.txt", processes, launcher)


@pytest.mark.slow
@pytest.mark.same_numbers("1, 2 and 4 processes with the same samples in a step, over 20 steps | losses 1e-4")
@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(2, 1, 2), (1, 1, 4), (1, 4, 1)])
def test_processes_and_accumulation_make_the_same_run(alone, tiny_model, tmp_path, batch_size, accumulation, processes):
    statuses = fit(tmp_path, processes, command(tiny_model, tmp_path, batch_size, accumulation))
    assert statuses == [0] * processes, (tmp_path / "log.txt").read_text()[-4000:]
    assert {start["processes"] for start in tiny_run.machines(tmp_path / "run")} == {processes}
    assert_one_run(tmp_path, alone)


def at_loss(number, victim, kind):
    """Make what sends signal `kind` to process `victim` at its loss `number`."""

    def act(rank):
        return lambda count: os.kill(os.getpid(), kind) if (rank, count) == (victim, number) else None

    return act


ON_TWO_ALONE_AND_FOUR = [  # processes, launcher, signal, loss at which it comes at the earliest
    (2, forked.DDP, signal.SIGKILL, 6),
    (1, forked.DDP, signal.SIGTERM, 1),
    (4, forked.DDP, signal.SIGKILL, 1),
]
BY_ZERO_AND_ALONE = [(2, forked.ZERO2, signal.SIGKILL, 6), (1, forked.DDP, signal.SIGTERM, 1)]
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lives", "last"),
    [
        pytest.param(ON_TWO_ALONE_AND_FOUR, forked.DDP, id="ddp"),
        pytest.param(BY_ZERO_AND_ALONE, forked.ZERO2, id="zero2", marks=[pytest.mark.long, needs_deepspeed]),
    ],
)
def test_a_run_killed_on_two_processes_goes_on_with_another_number(alone, tiny_model, tmp_path, lives, last):
    arguments = [*command(tiny_model, tmp_path, 2, 1), "--resume_from_checkpoint=latest"]
    moments, log = random.Random(), tmp_path / "log.txt"
    for processes, launcher, kind, first in lives:
        number, victim = moments.randint(first, first + 4), moments.randrange(processes)
        print(f"{kind.name} at loss {number} of process {victim} of {processes}")
        statuses = fit(tmp_path, processes, arguments, at_loss(number, victim, kind), launcher)
        assert statuses[victim] == (0 if kind is signal.SIGTERM else -kind), log.read_text()[-4000:]
    assert fit(tmp_path, 2, arguments, launcher=last) == [0, 0], log.read_text()[-4000:]

    assert_one_run(tmp_path, alone)
    starts = [(row["run"]["processes"], row["step"]) for row in tiny_run.rows(tmp_path / "run") if "run" in row]
    assert [processes for processes, _ in starts] == [*(processes for processes, *_ in lives), 2] and starts[1][1] == 5
    assert "2 x 2 accumulated x 1 process" in log.read_text()
    assert config.load([str(tmp_path / "run" / "config.yaml")]).trainer.gradient_accumulation_steps == 1  # as given
