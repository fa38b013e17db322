"""Checks for a GPU, run on a CPU at a tiny size so that mistakes in them are noticed."""

from __future__ import annotations

import importlib
import subprocess

import numpy as np
import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.measure import Run, random_layout, run_check
from benchmarks.gpu.model import Inputs, small_flux
from tests.golden_root import REPOSITORY

ROOMS = ("kernels", "machine", "model", "train")
TINY = Run.of("tiny", "cpu", seconds=5)


def test_the_list_names_every_check_with_a_line_about_it(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = [check for room in ROOMS for check in importlib.import_module(f"benchmarks.gpu.{room}").CHECKS]
    assert sorted(line.split()[0] for line in lines) == sorted(check.__name__ for check in checks)
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_check_is_one_line(capsys):
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_first_run_names_checks_that_exist_and_explains_itself():
    script = (REPOSITORY / "benchmarks" / "gpu" / "first_run.sh").read_text()
    named = [word for line in script.splitlines() if '"${CHECK[@]}"' in line for word in line.split("}")[1].split()]
    known = {check.__name__ for room in ROOMS for check in importlib.import_module(f"benchmarks.gpu.{room}").CHECKS}
    assert {word for word in named if word.isidentifier()} <= known
    asked = subprocess.run(
        ["bash", "benchmarks/gpu/first_run.sh", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert asked.returncode == 0 and "DEADLINE" in asked.stdout and not asked.stderr


def test_a_failed_check_is_reported_and_counted(capsys):
    def broken(on: Run) -> None:
        raise ValueError("no such kernel")

    assert run_check(broken, TINY) == 1
    assert "broken FAILED" in capsys.readouterr().out


def test_the_model_has_flux_s_width_and_takes_the_inputs():
    on = Run.of("flux", "meta")  # the meta device: shapes without memory
    tokens, settings = random_layout(TINY, np.random.default_rng(0), 2)
    model = small_flux(on)
    assert model.inner_dim == 3072 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    inputs = Inputs.random(on, tokens, settings, on.dtype)
    assert inputs.x.shape == (1, tokens.n_image, model.config.in_channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new_shapes", "nan_repro", "layouts", "launches", "autocast", "low_rank"])
def test_checks_run_at_a_tiny_size_on_a_cpu(name, capsys):
    assert main([name, "--size", "tiny", "--device", "cpu"]) == 0
    assert f"{name} " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kernels", "merged", "oracle"])
def test_attention_checks_agree_at_a_tiny_size_on_a_cpu(name, capsys):
    assert main([name, "--size", "tiny", "--device", "cpu", "--seconds", "20"]) == 0
    printed = capsys.readouterr().out
    assert "BAD" not in printed
    if name == "merged":
        (difference,) = (float(word.split("=")[1]) for word in printed.split() if word.startswith("difference="))
        assert difference < 0.01 and torch.isfinite(torch.tensor(difference))
