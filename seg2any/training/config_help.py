"""The keys of a config for people: defaults, and what seg2any/training/config.py says beside them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Iterator

from seg2any.attention.settings import CONFIG_ROOT_NAMES, NAMES, ConditionSettings
from seg2any.training.config import Config

FIELD = re.compile(r"^    (\w+): .*?(?:  # (.*))?$", re.M)


def explained_defaults() -> str:
    """A config file with every key at its default, and comments."""
    config = Config()
    return "\n".join([*_lines(config, ""), *_condition_lines(config.model.condition, CONFIG_ROOT_NAMES, "")])


def _condition_lines(condition: ConditionSettings, names: Iterable[str], indent: str) -> Iterator[str]:
    about = {field.name: field.metadata for field in dataclasses.fields(condition)}
    for name in names:
        value, choices = getattr(condition, name), about[name]["choices"]
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"{indent}{name}: {shown}  # {about[name]['help']}" + (f" ({', '.join(choices)})" if choices else "")


def _lines(section: object, indent: str) -> Iterator[str]:
    said = dict(FIELD.findall(inspect.getsource(type(section))))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, ConditionSettings):
            yield from _condition_lines(value, [name for name in NAMES if name not in CONFIG_ROOT_NAMES], indent)
        elif dataclasses.is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{indent}{field.name}: {shown}" + (f"  # {said[field.name]}" if said[field.name] else "")
