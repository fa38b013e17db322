"""train.sh with a python that only records its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from seg2any.training import config
from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow

STUB = """#!/usr/bin/env bash
printf '%s' "$$" >> "$NOTES"
printf '\\t%s' "$PWD" "$@" >> "$NOTES"
printf '\\n' >> "$NOTES"
"""
DATA_SETS = ("ade20k", "coco_stuff", "sacap_1m", "shapes")


def called(tmp_path: Path, script: Path, *arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
    """Run `script` with a stub in place of python.

    Returns the shell's process id, and process id, folder and arguments of every call of python.
    """
    stub, notes = tmp_path / "python", tmp_path / "notes"
    stub.write_text(STUB)
    stub.chmod(0o755)
    shell = subprocess.Popen(
        ["bash", str(script), *arguments],
        env={**os.environ, "PYTHON": str(stub), "NOTES": str(notes), **environment},
        cwd=tmp_path,
    )
    assert shell.wait(60) == 0
    return shell.pid, [line.split("\t") for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_trained_with_arguments_that_exist_from_any_folder(name, processes, tmp_path):
    more = ("--trainer.learning_rate=5e-5", "--project.output_dir=a b")
    machines = "--num_machines 2 --machine_rank 0"
    pid, calls = called(tmp_path, REPOSITORY / "train.sh", name, *more, PROCESSES=processes, MACHINES=machines)
    own_pid, folder, *words = calls[-1]
    assert int(own_pid) == pid, "a signal to the script must reach the training"
    assert folder == str(REPOSITORY)
    if processes == "2":
        at = words.index("train.py")
        launcher = words[:at]
        assert launcher[:3] == ["-m", "accelerate.commands.launch", "--config_file"]
        assert (REPOSITORY / launcher[3]).is_file() and launcher[4:] == ["--num_processes", "2", *machines.split()]
        words = words[at:]
    assert words[0] == "train.py" and words[1] == f"config/seg2any_{name}.yaml"
    chosen = config.load([str(REPOSITORY / words[1]), *words[2:]])
    assert (chosen.trainer.learning_rate, chosen.project.output_dir) == (5e-5, "a b")
    assert chosen.data.train.type == name
    assert [call[2] for call in calls[:-1]] == ["prepare_dataset_bucket_map.py"] * (name == "sacap_1m")


def test_a_checkout_in_a_folder_with_spaces(tmp_path):
    checkout = tmp_path / "my own checkout"
    checkout.mkdir()
    shutil.copy(REPOSITORY / "train.sh", checkout)
    _, ((_, folder, *words),) = called(tmp_path, checkout / "train.sh", "shapes", "--project.output_dir=x y")
    assert folder == str(checkout) and words[-1] == "--project.output_dir=x y"
