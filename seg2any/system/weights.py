"""What tells one base model from another of the same shape: some bytes of every tensor, read from its files.

Neither the folder's name nor how tensors are spread over files counts, so a model may move or be sharded anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")  # of a FLUX folder: what training computes with
WEIGHTS = re.compile(r"\w+(-\d+-of-\d+)?\.(safetensors|bin)")  # no variants, such as model.fp16.safetensors
SPOTS, SPOT_BYTES = 4, 64  # read of every tensor; another training changes nearly all numbers of what it changes


def weights_fingerprint(folder: Path) -> str:
    """Of the networks in a FLUX folder; "" if it has no weights. A second for FLUX.1-dev: a megabyte is read."""
    lines = [f"{part}/{line}" for part in PARTS for line in _network_lines(folder / part)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] if lines else ""


def _network_lines(folder: Path) -> Iterator[str]:
    files = [path for path in folder.glob("*") if WEIGHTS.fullmatch(path.name)]
    safe = [path for path in files if path.suffix == ".safetensors"]  # preferred where there are both
    for path in safe or files:
        with open(path, "rb") as file:
            for name, begin, end in _tensors(file) if safe else [(path.name, 0, path.stat().st_size)]:
                yield f"{name} {end - begin} {_sampled(file, begin, end)}"


def _tensors(file: BinaryIO) -> list[tuple[str, int, int]]:
    """Name, first byte and end of every tensor of a safetensors file. A damaged one is left to who loads it."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        named = [
            (f"{name} {about['dtype']} {about['shape']}", *about["data_offsets"]) for name, about in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
        return [("damaged", 0, 8)]
    return [(name, 8 + length + begin, 8 + length + end) for name, begin, end in named]


def _sampled(file: BinaryIO, begin: int, end: int) -> str:
    digest = hashlib.sha256()
    for spot in range(SPOTS):
        file.seek(begin + max(0, end - begin - SPOT_BYTES) * spot // (SPOTS - 1))
        digest.update(file.read(min(SPOT_BYTES, end - begin)))
    return digest.hexdigest()[:16]
