"""The table of tasks: chosen by a key of the config, refused by name, remembered by checkpoints."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest

import train as command_line
from seg2any.system.errors import UserError
from seg2any.training import config_check
from seg2any.training.config import Config, load
from seg2any.training.config_check import check_sections
from seg2any.training.identity import Identity
from seg2any.training.tasks import table
from seg2any.training.tasks.choose import describe_task, make_task
from seg2any.training.tasks.table import TASKS, Row


def test_every_row_names_what_exists_and_sections_of_the_config():
    for name, row in TASKS.items():
        for place in (row.made_by, row.told_by):
            module, inside = place.split(":")
            assert callable(getattr(importlib.import_module(module), inside)), name
        assert {*row.sections} <= {*Config().to_dict()}, name


def test_the_key_chooses_the_task_and_generation_is_the_default(monkeypatch):
    assert Config().task == "generation"
    monkeypatch.setitem(TASKS, "told", Row("a test", "builtins:repr", "builtins:type"))
    chosen = Config(task="told")
    assert make_task(chosen) == repr(chosen) and describe_task(chosen) is Config


def test_a_name_that_does_not_exist_is_one_line(capsys):
    assert command_line.main(["--task=generatoin"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"train.py: task: 'generatoin' is not possible; choose one of {', '.join(TASKS)}"


def test_help_lists_the_tasks(capsys):
    assert command_line.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"--task={name}" in told and row.text in told for name, row in TASKS.items())
    assert "task: generation  # " in told


@dataclass
class Painting:
    """Settings of a task."""

    colours: int = 3


def test_a_section_that_the_chosen_task_does_not_read_is_refused(monkeypatch):
    monkeypatch.setattr(config_check, "TASKS", {**table.TASKS, "paint": Row("paints", "a:b", "a:b", ("painting",))})
    config = Config()
    config.painting = Painting()
    check_sections(config)
    config.painting = Painting(colours=4)
    with pytest.raises(UserError, match="^painting: only task paint reads this section, not generation; set --task=pa"):
        check_sections(config)
    config.task = "paint"
    check_sections(config)


def test_a_checkpoint_of_before_was_of_generation():
    Identity({"task": "generation"}).load_state_dict({})
    with pytest.raises(UserError, match="^task: 'generation' in the checkpoint, 'coloring' now"):
        Identity({"task": "coloring"}).load_state_dict({})


def test_a_config_that_repeats_defaults_of_other_tasks_loads(tmp_path):
    Config().save(tmp_path / "all.yaml")
    assert load([str(tmp_path / "all.yaml")]) == Config()
