"""The frozen base sharded with FSDP2: two processes match DDP up to rounding.

The last bits of some products (of one row, in fp32) depend on the address of the weight, and a gathered weight has
another address: losses may be equal with one kind of kernels and differ by 1.2e-4 with another. A fault, such as
gradients that are not averaged, changes them by 1e-2 and more.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.system.errors import UserError
from seg2any.training import config
from seg2any.training.state_file import read_state
from seg2any.training.strategy import shards_base
from tests import forked, tiny_run
from tests.tiny_run import rows, same

pytestmark = pytest.mark.slow

SHARDED = "--trainer.shard_base=true"
LOSSES, WEIGHTS, PIXELS = 5e-4, 0.02, 0.5  # relative, relative to the norm, mean of 255 levels
FOUND = ("loss", "val_loss", "val_loss_s0.25", "val_loss_s1.00")


def command(model, folder, *options):
    """Return flags with accumulation, both dropouts and recomputed blocks.

    Two processes cannot halve its three validation images.
    """
    return [
        *tiny_run.arguments(model, folder),
        *("--mixed_precision=bf16", "--trainer.gradient_checkpointing=true", "--trainer.checkpointing_steps=1"),
        *("--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 3}", "--model.num_inference_steps=1"),
        *("--trainer.num_validation_images=3", "--trainer.validation_loss_steps=1", "--trainer.max_train_steps=3"),
        *options,
    ]


def assert_in_parts(transformer):
    from torch.distributed.tensor import DTensor

    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            assert not isinstance(parameter, DTensor) and parameter.dtype == torch.float32, name
        else:
            rows_here = len(parameter.to_local())
            assert isinstance(parameter, DTensor) and rows_here in (len(parameter) // 2, -(-len(parameter) // 2)), name


def train(arguments):
    trainer = tiny_run.trainer(arguments)
    if trainer.options.shard_base:
        assert_in_parts(trainer.task.pipeline.transformer)
    assert trainer.accelerator.num_processes == 2
    trainer.fit()


@pytest.mark.same_numbers("a base in parts, and plain DDP | losses 5e-4, pixels 0.5 of 255")
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_base_trains_validates_and_resumes_as_a_whole_one(tiny_model, tmp_path):
    log = tmp_path / "log.txt"
    whole, parts = (command(tiny_model, tmp_path / name) for name in ("whole", "parts"))
    resumed = [*parts, "--resume_from_checkpoint=latest", SHARDED]
    for arguments in (whole, [*parts, "--trainer.max_train_steps=1"], resumed):  # a run may change to shards
        statuses = forked.run(lambda rank, now=arguments: train(now), log, 2)
        assert statuses == [0, 0], log.read_text()[-4000:]
    folders = [tmp_path / name / "run" for name in ("whole", "parts")]
    numbers = [
        [{key: row[key] for key in FOUND if key in row} for row in rows(folder) if "run" not in row]
        for folder in folders
    ]
    assert len(numbers[0]) == len(numbers[1]) == 6
    for ours, theirs in zip(*numbers, strict=True):
        assert ours == pytest.approx(theirs, rel=LOSSES)
    states = [read_state(folder / "checkpoint-3" / "training_state.safetensors") for folder in folders]
    assert_same_up_to_rounding(*states)
    images = [sorted((folder / "gen_imgs" / "step-3").glob("*.png")) for folder in folders]
    assert [path.name for path in images[0]] == [path.name for path in images[1]] and len(images[1]) == 3
    for pair in zip(*images, strict=True):
        ours, theirs = (np.asarray(Image.open(path)).astype(int) for path in pair)
        assert np.abs(ours - theirs).mean() < PIXELS


def assert_same_up_to_rounding(ours, theirs):
    """Compare nested states: float tensors by the norm of their difference, the rest exactly."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same_up_to_rounding(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor) and ours.is_floating_point():
        assert (ours - theirs).norm() <= WEIGHTS * theirs.norm()
    else:
        assert same(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("DEEPSPEED", [], "DeepSpeed"),
        ("MULTI_GPU", ["--memory=nf4"], "trainer.base_quantization"),
        ("MULTI_GPU", ["--trainer.compile=true"], "trainer.compile"),
    ],
)
def test_options_that_exclude_a_sharded_base_are_refused(kind, options, message):
    launched = SimpleNamespace(num_processes=2, distributed_type=SimpleNamespace(value=kind))
    with pytest.raises(UserError, match=f"trainer.shard_base: .*{message}"):
        shards_base(config.load([SHARDED, *options]), launched)
    launched.num_processes = 1
    assert not shards_base(config.load([SHARDED, *options]), launched)
