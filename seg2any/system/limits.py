"""Bound what a file from a stranger may cost: one object, which every reader asks.

OWN is for files on one's own machine and stands unless something else is chosen; STRICT is for a server that strangers
send files to: with it a file costs at most a few seconds and some hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """The most that one file may hold or cost.

    file_bytes     of a picture or an npz file
    json_bytes     of a JSON text
    lines_bytes    of a file of JSON lines; one line is bounded by json_bytes
    yaml_bytes     of a config, whose parser is slow; also four times the values that it may stand for
    header_bytes   of the header of a safetensors file
    table_bytes    of a parquet file, unpacked, beyond EXPANSION times its size on the disk
    pixels         of one picture or mask
    mask_bytes     of all masks of a layout; also the pixels that its polygons may cover together
    mask_pixels    of all pictures of a layout's masks together, which are decoded one by one
    regions        of a layout
    points         of all polygons of a layout
    colors         of a picture whose colours are regions
    snapped        pixels of such a picture, times the colours that its soft edges are compared with
    characters     of a caption
    rank           of an adapter
    depth          of lists and objects inside each other in a JSON text
    seconds        of work on one file in a process of its own, see `seg2any.system.confined`
    memory_bytes   of such a process, beyond what its libraries take
    """

    file_bytes: int
    json_bytes: int
    lines_bytes: int
    yaml_bytes: int
    header_bytes: int
    table_bytes: int
    pixels: int
    mask_bytes: int
    mask_pixels: int
    regions: int
    points: int
    colors: int
    snapped: int
    characters: int
    rank: int
    depth: int
    seconds: float
    memory_bytes: int


OWN = Limits(
    file_bytes=2**32,
    json_bytes=2**26,
    lines_bytes=2**34,
    yaml_bytes=2**20,
    header_bytes=100_000_000,  # safetensors itself reads no longer one
    table_bytes=2**28,
    pixels=2**26,
    mask_bytes=2**31,
    mask_pixels=2**31,
    regions=4096,
    points=2**20,
    colors=2**18,
    snapped=2**34,
    characters=10_000,
    rank=4096,
    depth=100,
    seconds=600.0,
    memory_bytes=2**34,
)
STRICT = Limits(
    file_bytes=2**25,
    json_bytes=2**21,
    lines_bytes=2**21,
    yaml_bytes=2**16,
    header_bytes=2**22,
    table_bytes=2**26,
    pixels=2**22,
    mask_bytes=2**27,
    mask_pixels=6 * 2**20,
    regions=63,
    points=2**15,
    colors=2**13,
    snapped=2**25,
    characters=2_000,
    rank=512,
    depth=32,
    seconds=10.0,
    memory_bytes=2**30,
)

EXPANSION = 64  # of a parquet file: compressed tables of captions become about ten times as large
_chosen = OWN


def limits() -> Limits:
    """Return the limits that stand in this process."""
    return _chosen


def bounded_bytes(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes. Raises OSError, and ValueError for a larger one."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most / (1 << 20):g} MiB")
    return data


def choose_limits(chosen: Limits) -> None:
    """Let these limits stand from now on, in all threads of this process; for servers, with STRICT at their start."""
    global _chosen
    _chosen = chosen


@contextmanager
def limited(chosen: Limits) -> Iterator[None]:
    """Let these limits stand, in all threads of this process, until the end of the block."""
    before = limits()
    choose_limits(chosen)
    try:
        yield
    finally:
        choose_limits(before)
