"""Fixtures shared by several test files: models built from configs, never downloaded."""

from __future__ import annotations

import gc
import os
import sys
import threading

import pytest
from tqdm import tqdm

from tests import tiny_run


def pytest_configure(config):
    """Limit each process to one thread before torch is imported.

    On models this small, threads wait longer than they compute: on a busy machine a test takes ten times as long.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Forked processes share tqdm's lock: one that is killed while it holds it would stop the tests' process for ever.
    os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


def pytest_collection_finish():
    """Keep what importing has made from the garbage collector, which every training run calls."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Write the claim of every test marked `same_numbers` into its report, for tests/processors.py."""
    for item in items:
        for mark in item.iter_markers("same_numbers"):
            item.user_properties.append(("claim", mark.args[0]))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    tiny_run.forget_accelerate()


@pytest.fixture(scope="session")
def stock_pipe():
    """Build `random_pipe` once. All tests share it: do not change its weights or adapters."""
    return random_pipe()


def random_pipe():
    """Build a stock FluxPipeline of 2 + 3 narrow blocks with random weights and a small VAE."""
    import torch
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    from examples.shapes.make import build

    torch.manual_seed(0)
    clip_tokenizer, t5_tokenizer = build.build_clip_tokenizer(), build.build_t5_tokenizer()
    clip, t5 = build.build_text_encoders(len(clip_tokenizer), len(t5_tokenizer))
    vae = {**build.build_vae().config, "block_out_channels": (8, 8, 16, 16), "shift_factor": 0.1, "scaling_factor": 0.6}
    small = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16}
    transformer = {**build.build_transformer().config, **small, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True}
    pipe = FluxPipeline(
        scheduler=build.build_scheduler(),
        vae=AutoencoderKL.from_config(vae).eval(),
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel.from_config(transformer).eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(stock_pipe):
    """Build a Seg2AnyPipeline on a copy of the stock transformer, with non-zero adapters.

    All tests share it: do not change it.
    """
    import torch

    from seg2any.adapters import files as adapters
    from tests.tiny_pipeline import fresh_pipe

    pipe = fresh_pipe(stock_pipe)
    adapters.add_adapters(pipe.transformer, rank=4, alpha=2)
    torch.manual_seed(1)
    for parameter in adapters.trainable_parameters(pipe.transformer):
        torch.nn.init.normal_(parameter, std=0.1)
    return pipe


@pytest.fixture(scope="session")
def tiny_model(stock_pipe, tmp_path_factory):
    """Save `stock_pipe` to a folder and return its path."""
    folder = tmp_path_factory.mktemp("model")
    stock_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(tiny_model, tmp_path):
    """Return the command line of a short training run that writes to tmp_path / "run"."""
    return tiny_run.arguments(tiny_model, tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that calls `infer.py` in this process: arguments -> (status, stderr)."""
    import infer
    from tests.infer_command import command

    def run(*arguments: object, **flags: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command(*arguments, **flags)[1:])
        return infer.main(), capsys.readouterr().err

    return run
