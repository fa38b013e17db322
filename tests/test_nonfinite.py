"""A non-finite gradient in one process: all skip the step and name the samples."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from seg2any.bases.base import Posterior
from seg2any.system.errors import UserError
from tests import forked, tiny_run

pytestmark = pytest.mark.slow

needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
LAUNCHERS = [
    pytest.param(forked.DDP, id="ddp"),
    pytest.param(forked.ZERO2, id="zero2", marks=needs_deepspeed),
]


class Told:
    """A log that keeps its messages."""

    def __init__(self):
        self.said = []

    def begin(self): ...
    def measure(self, *arguments): ...
    def step(self, *arguments, **named): ...

    def say(self, message):
        self.said.append(message)


def poison(trainer):
    """Replace the trainer's images with NaN, so that its loss is NaN."""
    image = Posterior(torch.full((16, 64), torch.nan), torch.zeros(16, 64))
    trainer.task.objective.dropped_out = lambda sample, generator: replace(sample, image=image)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.trainable.parameters.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_bad_batch_of_one_process_is_skipped_by_all(launcher, tiny_model, tmp_path):
    arguments = [*tiny_run.arguments(tiny_model, tmp_path), "--trainer.max_skipped_steps=2"]

    def run(rank):
        trainer, log = tiny_run.trainer(arguments), Told()
        trainer.step(log)
        before, moments = weights(trainer), trainer.moments.state_dict()
        if rank == 1:
            poison(trainer)
        trainer.step(log)
        assert same(before, weights(trainer)) and trainer.progress.skipped == 1
        after = trainer.moments.state_dict()
        for name, moment in moments.items():
            assert torch.equal(moment["exp_avg"], after[name]["exp_avg"])
        (line,) = log.said
        assert line.startswith("step 2: the gradient was not finite, no update; 1 so far, now with samples train_")
        assert line.count("train_") == 8  # 2 micro-steps x 2 samples x 2 processes
        with pytest.raises(UserError, match="step 3: the gradient was not finite 2 times in a row, last with samples"):
            trainer.step(log)
        trainer.task.objective.__dict__.pop("dropped_out", None)
        trainer.step(log)
        assert trainer.progress.skipped_in_a_row == 0 and not same(before, weights(trainer))
        assert all(value.isfinite().all() for value in weights(trainer).values())

    log = tmp_path / "log.txt"
    assert forked.run(run, log, 2, launcher) == [0, 0], log.read_text()[-4000:]
