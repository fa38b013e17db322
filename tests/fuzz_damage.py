"""Damage whole files at random: bytes of pictures, archives and tables, values of JSON documents."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS = [
    None,
    True,
    -1,
    0,
    1,
    63,
    2**31,
    2**63,
    10**400,
    0.5,
    1e999,
    -0.0,
    "",
    " ",
    "x",
    "\ud800",
    "\0",
    "../x",
    "a\nb",
    "\u00e9" * 200,
]
WORDS += [[], [[]], {}, {"a": {}}, [255, 0, 0], [0.0, 0, 0], ["255", 0, 0], [-1, 0, 0], [1] * 1000, "0" * 300, "o" * 40]
KEYS = ["segments_info", "annotations", "color", "mask", "segmentation", "text", "caption", "seed", "size", "counts"]


@dataclass(frozen=True)
class Kind:
    """A kind of file: its place below a folder, what a whole one holds, how it is damaged and read."""

    place: str
    whole: bytes
    damage: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage data one to four times: change a byte, cut out, double or overwrite a piece, cut the end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        action = rng.integers(6)
        if action <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = data[at : at + length]
        elif action == 4:
            data[at : at + length] = rng.bytes(length)
        else:
            del data[at:]
    return bytes(data)


def repair_png(data: bytes) -> bytes:
    """Correct the checksums of damaged chunks, so that the damage reaches the decoder behind them."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return out + data[at:]


def damage_png(data: bytes, rng: np.random.Generator) -> bytes:
    data = damage(data, rng)
    return repair_png(data) if rng.integers(2) else data


def damage_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Change values of a JSON text, or bytes of it."""
    if rng.integers(4) == 0:
        return damage(data, rng)
    mutant = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        mutate(mutant, rng)
    return json.dumps(mutant).encode()


def damage_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the JSON at the beginning of a safetensors file, and mostly correct its length."""
    length = int.from_bytes(data[:8], "little")
    head = damage_values(data[8 : 8 + length], rng)
    said = len(head) if rng.integers(8) else int(rng.integers(2**40))
    return said.to_bytes(8, "little") + head + data[8 + length :]


def damage_metadata(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the header of a file of adapters, or only peft's configuration inside it."""
    if rng.integers(3) == 0:
        return damage_header(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = header["__metadata__"]
    told["lora_adapter_metadata"] = damage_values(told["lora_adapter_metadata"].encode(), rng).decode(errors="replace")
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def damage_ends(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file anywhere, but every other time in its last 500 bytes, where parquet and zip keep what they hold."""
    if rng.integers(2):
        return damage(data, rng)
    return data[:-500] + damage(data[-500:], rng)


def mutate(value: object, rng: np.random.Generator) -> None:
    """Change one thing somewhere in a JSON document: replace, remove, add or rename."""
    places = list(containers(value))
    place = places[rng.integers(len(places))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    word = copy.deepcopy(WORDS[rng.integers(len(WORDS))])
    action = rng.integers(4)
    if not keys or action == 0:
        if isinstance(place, dict):
            place[KEYS[rng.integers(len(KEYS))]] = word
        else:
            place.append(word)
    elif action == 1:
        del place[keys[rng.integers(len(keys))]]
    else:
        place[keys[rng.integers(len(keys))]] = word


def containers(value: object):
    if isinstance(value, (dict, list)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)
