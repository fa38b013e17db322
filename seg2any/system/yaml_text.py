"""Parse YAML that may be hostile: a few lines of aliases can stand for more values than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast
PER_VALUE = 4  # bytes of a text for each value that it may stand for


def parse_yaml(data: bytes, most: int) -> Any:
    """Parse YAML of plain values.

    most  bytes that it may have, PER_VALUE times the values that it may stand for

    Raises ValueError, also for a text that is too long, or stands for too much.
    """
    return _read(data, most, lambda loader, node: None if node is None else loader.construct_document(node))


def check_yaml(data: bytes, most: int) -> None:
    """Raise ValueError for a text that is no YAML, is too long, or stands for too much."""
    _read(data, most, lambda loader, node: None)


def _read(data: bytes, most: int, build: Callable[[Any, yaml.Node | None], Any]) -> Any:
    if len(data) > most:
        raise ValueError(f"it is larger than {most >> 10} KiB")
    try:
        loader = LOADER(data)
        try:
            node = loader.get_single_node()
            if _values(node, {}) > most // PER_VALUE:
                raise ValueError(f"its values are more than {most // PER_VALUE}, aliases included")
            return build(loader, node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values below a node, each alias as often as it is written."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1 << 62  # of a node that holds itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
