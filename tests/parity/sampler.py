"""The published length classes; the order of its samplers belongs to the data-set work."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from seg2any.data.sampler import published_length_class


def cases(root: Path) -> dict[str, Callable[[], None]]:
    tables = _recorded(root).get("tables", [])
    return {f"tables/{number}/flag": partial(_check_flags, table) for number, table in enumerate(tables)}


def pending(root: Path) -> dict[str, str]:
    reasons = {}
    for key, value in _recorded(root).items():
        if key == "tables":
            for number, table in enumerate(value):
                if table.get("runs"):
                    reasons[f"tables/{number}/runs"] = "the published sampler comes with the data sets"
        elif key != "versions":
            reasons[key] = "the published sampler comes with the data sets"
    return reasons


def _recorded(root: Path) -> dict:
    path = root / "sampler" / "sampler.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _check_flags(table: dict) -> None:
    lengths = zip(table["cond_seq_len"], table["txt_seq_len"], strict=True)
    assert [published_length_class(cond, text) for cond, text in lengths] == table["flag"]
