"""Threads of a command: their number, and how they wait, are settled before torch is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seg2any.system import allocator, threads
from tests.golden_root import REPOSITORY
from tests.infer_command import command, layout

# Run a command up to its first import of torch, and print the environment of that moment.
UNTIL_TORCH = """
import importlib.abc, json, os, runpy, sys

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("\\n" + json.dumps(dict(os.environ)), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Stop())
sys.path.insert(0, os.getcwd())
name, *sys.argv[1:] = sys.argv[1:]
run = runpy.run_path if name.endswith(".py") else runpy.run_module
run(name, run_name="__main__")
"""
CONFIG = "config/seg2any_shapes.yaml"
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", *allocator.ALLOCATOR_SETTINGS)


@pytest.fixture
def bare(monkeypatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def at_torch(*arguments: object) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_TORCH, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_command_settles_them_before_torch(tmp_path: Path, bare):
    layout("a").write(tmp_path / "a.json")
    (tmp_path / "run.json").write_text("{}")
    for arguments in (
        command(seg_mask_path=tmp_path / "a.json")[1:],
        (REPOSITORY / "train.py", CONFIG, f"--project.output_dir={tmp_path / 'run'}"),
        ("seg2any.evaluation.generate_image", CONFIG, "--output_path", tmp_path / "images"),
        ("seg2any.evaluation.shapes", "--output", tmp_path / "shapes"),
        ("seg2any.evaluation.runners", tmp_path),
        ("seg2any.evaluation.ablation", "--output", tmp_path / "ablation"),
    ):
        found = at_torch(*arguments)
        assert found["OMP_WAIT_POLICY"] == "PASSIVE" and found["GOMP_SPINCOUNT"] == "0", arguments
        assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True", arguments
        if sys.platform == "linux":
            assert 1 <= int(found["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0)), arguments


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
def test_openmp_reads_them(tmp_path: Path, bare, monkeypatch):
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    layout("a").write(tmp_path / "a.json")
    done = subprocess.run(
        command("--check", seg_mask_path=tmp_path / "a.json", output_path=tmp_path / "out"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr and "GOMP_SPINCOUNT = '0'" in done.stderr


class TestCounts:
    """Four usable cores, one of them busy."""

    @pytest.fixture(autouse=True)
    def machine(self, bare, monkeypatch):
        monkeypatch.setattr(threads, "n_usable_cores", lambda: 4)
        monkeypatch.setattr(threads, "n_idle_cores", lambda: 3)
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name in SETTINGS:  # set by the code under test, restored by pytest
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)

    def test_inference_takes_the_idle_ones_and_says_so(self, capsys):
        threads.compute_on_idle_cores()
        assert os.environ["OMP_NUM_THREADS"] == "3" and "OMP_NUM_THREADS" in capsys.readouterr().err

    def test_training_takes_all_whatever_the_load(self, capsys):
        threads.compute_on_all_cores()
        assert os.environ["OMP_NUM_THREADS"] == "4" and not capsys.readouterr().err

    def test_processes_of_a_run_share_them(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        threads.compute_on_all_cores()
        assert os.environ["OMP_NUM_THREADS"] == "2"

    @pytest.mark.parametrize("compute", [threads.compute_on_idle_cores, threads.compute_on_all_cores])
    def test_what_the_user_has_set_stays(self, monkeypatch, compute):
        monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
        monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
        compute()
        assert os.environ["OMP_NUM_THREADS"] == "4,2" and os.environ["GOMP_SPINCOUNT"] == "1000"
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"

    def test_where_the_system_does_not_tell_torch_decides(self, monkeypatch):
        monkeypatch.setattr(threads, "n_usable_cores", lambda: 0)
        threads.compute_on_idle_cores()
        threads.compute_on_all_cores()
        assert "OMP_NUM_THREADS" not in os.environ

    @pytest.mark.parametrize("name", allocator.ALLOCATOR_SETTINGS)
    def test_allocator_settings_of_the_user_stay(self, monkeypatch, name: str):
        monkeypatch.setenv(name, "max_split_size_mb:128")
        allocator.let_segments_grow()
        assert {known: os.environ.get(known) for known in allocator.ALLOCATOR_SETTINGS if known in os.environ} == {
            name: "max_split_size_mb:128"
        }
