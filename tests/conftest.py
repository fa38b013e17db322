"""Fixtures that several test files share: models built from their configs, never downloaded."""

from __future__ import annotations

import os
import sys

import pytest

from tests import tiny_run


def pytest_configure(config):
    """One thread per process, before torch is imported: on models this small, threads wait longer than they compute,
    ten times longer when the machine is busy."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    tiny_run.forget_accelerate()


@pytest.fixture(scope="session")
def stock_pipe():
    """A stock FluxPipeline: 2 + 3 narrow blocks with random weights, text and VAE as in the embedded model but smaller.

    One for all tests: leave its weights and its adapters as they are.
    """
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
    """Ours around its own copy of the stock transformer, with adapters that do something; leave it as it is."""
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
    """The folder of `stock_pipe`."""
    folder = tmp_path_factory.mktemp("model")
    stock_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(tiny_model, tmp_path):
    """A training run of seconds in tmp_path / "run"."""
    return tiny_run.arguments(tiny_model, tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """`infer.py` without the seconds that a new process takes: a function from its arguments to status and stderr."""
    import infer
    from tests.infer_command import command

    def run(*arguments: object, **flags: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command(*arguments, **flags)[1:])
        return infer.main(), capsys.readouterr().err

    return run
