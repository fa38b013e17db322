"""Parse JSON that may be damaged or hostile: every fault is a ValueError, and nothing is nested without end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seg2any.system.limits import limits

STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # the last one may lack its end
OPENING, CLOSING = b"[{", b"]}"


class TooDeep(ValueError):
    """A JSON text with more lists and objects inside each other than the limits say."""


def parse_json(data: bytes | str) -> Any:
    """Parse JSON. Raises ValueError, also for a text that is too long or nested too deeply."""
    check_text(data)
    return json.loads(data)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield place and bytes of each line of a file of JSON lines. Raises ValueError for a file or line too long."""
    most = limits()
    if path.stat().st_size > most.lines_bytes:
        raise ValueError(f"it is larger than {most.lines_bytes >> 20} MiB")
    place = 0
    with open(path, "rb") as file:
        while line := file.readline(most.json_bytes + 1):
            if len(line) > most.json_bytes:
                raise ValueError(f"a line is longer than {most.json_bytes >> 20} MiB")
            yield place, line
            place += len(line)


def check_text(data: bytes | str) -> None:
    """Raise ValueError for a JSON text that is longer or nested more deeply than the limits say."""
    if len(data) > (most := limits().json_bytes):
        raise ValueError(f"it is larger than {most >> 20} MiB")
    check_depth(data.encode(errors="surrogatepass") if isinstance(data, str) else data)


def check_depth(data: bytes) -> None:
    """Raise ValueError for a JSON text that is nested more deeply than the limits say."""
    if (found := _depth(data)) > (deepest := limits().depth):
        raise TooDeep(f"it is nested {found} deep, more than {deepest}")


def _depth(data: bytes) -> int:
    """Return how many lists and objects lie in each other at most."""
    if sum(data.count(sign) for sign in (b"[", b"{")) <= limits().depth:
        return 0  # as in nearly all files
    signs = np.frombuffer(STRING.sub(b"", data), np.uint8)
    steps = np.isin(signs, list(OPENING)).astype(np.int8) - np.isin(signs, list(CLOSING))
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))
