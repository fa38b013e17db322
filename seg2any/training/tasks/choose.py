"""Make or describe the task that a config chooses; only that one is imported."""

from __future__ import annotations

import importlib
from typing import Any

from seg2any.training.config import Config
from seg2any.training.task import Task
from seg2any.training.tasks.table import TASKS


def make_task(config: Config) -> Task:
    """Make the task that the config chooses. Raises UserError."""
    return _named(TASKS[config.task].made_by)(config)


def describe_task(config: Config) -> str:
    """Describe the run that the config chooses, without its weights. Raises UserError."""
    return _named(TASKS[config.task].told_by)(config)


def _named(name: str) -> Any:
    module, _, inside = name.partition(":")
    return getattr(importlib.import_module(module), inside)
