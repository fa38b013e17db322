"""The keys of a config for people: defaults, and what seg2any/training/config.py says beside them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator

from seg2any.training.config import Config

FIELD = re.compile(r"^    (\w+): .*?(?:  # (.*))?$", re.M)


def explained_defaults() -> str:
    """A config file with every key at its default, and comments."""
    return "\n".join(_lines(Config(), ""))


def _lines(section: object, indent: str) -> Iterator[str]:
    said = dict(FIELD.findall(inspect.getsource(type(section))))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{indent}{field.name}: {shown}" + (f"  # {said[field.name]}" if said[field.name] else "")
