"""A task without adapters or velocity: linear regression with the same trainer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from seg2any.data.sampler import LengthBatches
from seg2any.system.errors import UserError
from seg2any.training import config
from seg2any.training.checkpoint import STATE
from seg2any.training.state_file import read_state
from seg2any.training.task import Batch
from seg2any.training.trainer import Trainer
from tests.tiny_run import losses, rows, same

pytestmark = pytest.mark.slow

TRUTH = torch.tensor([[1.0, -2.0, 0.5]])  # y = TRUTH x
POINTS = 32


@dataclass(frozen=True)
class Point:
    """One sample: x [3], y [1]."""

    x: torch.Tensor
    y: torch.Tensor

    lengths = (1,)


class Points:
    """The samples, in the order of the data room's own sampler."""

    def __init__(self):
        x = torch.randn(POINTS, 3, generator=torch.Generator().manual_seed(1))
        self.points = [Point(row, TRUTH @ row) for row in x]

    def sampler(self, kind, batch_size, seed, process, accumulation):
        return LengthBatches(np.zeros((POINTS, 2)), batch_size, seed, process, accumulation=accumulation)

    def batches(self, sampler):
        for indices in sampler:
            places = list(range(len(indices)))
            yield Batch(places, list(indices), [f"point {i}" for i in indices], [self.points[i] for i in indices])


class Regression:
    """Task that trains one linear layer on points with noise in x.

    `noise` is the setting that distinguishes two runs.
    """

    def __init__(self, noise=0.05):
        self.noise = noise

    def identity(self):
        return {"noise": self.noise}

    def load(self, strategy, saved, planned):
        self.strategy, self.saved = strategy, saved
        self.network, self.data = nn.Linear(3, 1, bias=False).to(strategy.device), Points()

    def trainable(self):
        return dict(self.network.named_parameters())

    def loss(self, network, samples, generators):
        x = torch.stack(
            [s.x + self.noise * torch.randn(3, generator=g) for s, g in zip(samples, generators, strict=True)]
        )
        return (network(x) - torch.stack([s.y for s in samples])).square().mean()

    def predicted_bytes(self, shares):
        raise AssertionError("nobody counts the memory of a CPU")

    def validation_losses(self):
        assert not torch.is_grad_enabled() and not self.network.training
        return {"val_distance": (self.network.weight - TRUTH).norm().item()}

    def validation_images(self, folder):
        folder.mkdir(parents=True)
        picture = Image.fromarray(self.network.weight.numpy().astype(np.uint8))
        picture.save(folder / "weight.png")
        return [picture]

    def facts(self, shares):
        return {"memory": "little"}

    def usage(self, folder):
        return None

    def save(self, folder, step):
        save_file({"weight": self.network.weight.detach().clone()}, folder / "head.safetensors", {"step": str(step)})


def arguments(folder, *options):
    return [
        *("--mixed_precision=no", f"--project.output_dir={folder}", "--trainer.train_batch_size=4"),
        *("--trainer.gradient_accumulation_steps=2", "--trainer.learning_rate=0.05", "--trainer.ema_decay=0.5"),
        *("--trainer.max_train_steps=60", "--trainer.checkpointing_steps=30", "--trainer.log_steps=1"),
        *("--trainer.validation_loss_steps=30", "--trainer.validation_steps=60", "--optimizer.adam_weight_decay=0"),
        *options,
    ]


def fit(task, *words):
    trainer = Trainer(config.load(words), task)
    trainer.fit()
    return trainer


def test_another_task_trains_validates_saves_and_resumes(tmp_path):
    whole = fit(Regression(), *arguments(tmp_path / "whole"))
    fit(Regression(), *arguments(tmp_path / "parts", "--trainer.max_train_steps=30"))
    resumed = Regression()
    fit(resumed, *arguments(tmp_path / "parts", "--resume_from_checkpoint=latest"))

    assert (whole.task.network.weight - TRUTH).norm() < 0.1 * TRUTH.norm()
    assert resumed.saved == tmp_path / "parts" / "checkpoint-30" and whole.task.saved is None
    folders = [tmp_path / name / "checkpoint-60" for name in ("whole", "parts")]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "whole")) == 60
    states = [read_state(folder / STATE) for folder in folders]
    assert same(*states) and set(states[0]["adapters"]) == set(states[0]["optimizer"]) == {"weight"}
    heads = [load_file(folder / "head.safetensors")["weight"] for folder in folders]
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], whole.average.values[0])


def test_validation_sees_the_average_and_leaves_the_weights(tmp_path):
    trainer = fit(Regression(), *arguments(tmp_path))
    found = {row["step"]: row["val_distance"] for row in rows(tmp_path) if "val_distance" in row}
    assert found.keys() == {30, 60} and found[60] < found[30]
    assert found[60] == pytest.approx((trainer.average.values[0] - TRUTH).norm().item(), rel=1e-5)
    assert not torch.equal(trainer.task.network.weight, trainer.average.values[0]) and trainer.task.network.training
    assert [path.parent.name for path in tmp_path.rglob("weight.png")] == ["step-60"]


def test_a_resumed_task_must_be_the_same(tmp_path):
    fit(Regression(), *arguments(tmp_path, "--trainer.max_train_steps=1"))
    latest = arguments(tmp_path, "--resume_from_checkpoint=latest")
    with pytest.raises(UserError, match="^noise: 0.05 in the checkpoint, 0.5 now"):
        Trainer(config.load(latest), Regression(noise=0.5))
    (tmp_path / "checkpoint-1" / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"), pytest.warns(UserWarning, match="head.safetensors"):
        Trainer(config.load(latest), Regression()).resume()
