"""How the adapters of a row were trained, from what their training left beside them."""

from __future__ import annotations

import json
from pathlib import Path

from seg2any.adapters.card import AdapterCard
from seg2any.system.errors import UserError
from seg2any.training.config import load


def training_of(adapter: Path, card: AdapterCard | None) -> dict:
    """Optimizer steps, the seed of the training and the machine that it began on; None for what is not known."""
    config, log = adapter / "config.yaml", adapter.parent / "log.jsonl"
    return {
        "steps": card.step if card is not None and card.step else None,
        "seed": _seed(config) if config.is_file() else None,
        "machine": _machine(log) if log.is_file() else None,
    }


def _seed(config: Path) -> int | None:
    try:
        return load([str(config)]).seed
    except UserError:
        return None  # a config of another version, which the adapters do not need


def _machine(log: Path) -> str | None:
    with open(log, encoding="utf-8") as lines:
        try:
            return json.loads(next(lines, "null"))["run"]["machine"]["name"]
        except (ValueError, KeyError, TypeError):
            return None  # a log of another make
