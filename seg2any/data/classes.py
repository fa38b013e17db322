"""Captions of class ids, as the published checkpoints were trained with them: never improved."""

from __future__ import annotations

from pathlib import Path

CAPTIONS = Path(__file__).parent / "captions"


def read_class_captions(name: str) -> dict[int, str]:
    """id -> caption, from captions/`name`.txt: `id<TAB>caption` per line. Two ids may share a caption."""
    lines = (CAPTIONS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {int(number): caption for number, caption in (line.split("\t") for line in lines)}
