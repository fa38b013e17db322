"""Tars from the network: cut off, with holes, with hostile names, or no tars at all. They are only ever read.

`tarfile` stops without a word at the first damaged header; here the members behind the damage are found again.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from seg2any.system.errors import UserError

BLOCK = 512
MAGIC, MAGIC_AT = b"ustar", 257  # in every header block
CHUNK = 1 << 20
EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)  # of what follows
MAX_NAME_BYTES = 1 << 16
MAX_MEMBER_BYTES = 1 << 26  # a picture or a json


@dataclass(frozen=True)
class Member:
    """A file of a tar, and where its bytes lie in that."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """`members`: the wanted ones, by their own name without folders. `damage`: what is wrong with the tar, or ""."""

    members: dict[str, Member]
    damage: str


def find_tars(folders: Sequence[Path]) -> dict[str, Path]:
    """Group -> tar, of all GROUP.tar directly in `folders`; the first folder wins. Raises UserError for no folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--tar_dir {folder}: is not a folder; give the folder of sa_000000.tar and its like")
        for path in sorted(folder.glob("*.tar")):
            found.setdefault(path.stem, path)
    return found


def index_tar(path: Path, wanted: Set[str]) -> Index:
    """Where the `wanted` file names are in the tar, reading headers only. Of equal names the last one counts, as for
    tar itself. Raises OSError if the file cannot be read."""
    size = path.stat().st_size
    found, damage = {}, ""
    with open(path, "rb", buffering=0) as file:
        for item in _walk(file, size):
            if isinstance(item, str):
                damage = damage or item
            elif (name := item.name.rpartition("/")[2]) in wanted and _is_harmless(item.name):
                found[name] = item
    return Index(found, damage)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Raises OSError if it cannot be read, or if fewer bytes are left than there should be."""
    if member.size > MAX_MEMBER_BYTES:
        raise OSError(f"has {member.size} bytes, more than {MAX_MEMBER_BYTES >> 20} MiB")
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise OSError("is cut off")
    return data


def _is_harmless(name: str) -> bool:
    """Only the last part of a name is ever used, so that no name leads anywhere; those that try are not trusted."""
    return not name.startswith("/") and ".." not in name.split("/")


def _walk(file: BinaryIO, size: int) -> Iterator[Member | str]:
    """Every whole regular file, and a text about every damage. `size` is the tar's, in bytes."""
    position, long_name, ended = 0, "", False
    while position + BLOCK <= size:
        file.seek(position)
        block = file.read(BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            after = _next_header(file, position + BLOCK)
            ended = not any(block)
            if position == 0:
                yield f"no tar archive (it begins with {block[:16]!r})"
            elif not ended:
                yield f"damaged at byte {position}"
            elif after < size or after - position > CHUNK:  # the end of a tar is short
                yield f"empty from byte {position} to {after}"
            position, long_name = after, ""
            continue
        data, ended = position + BLOCK, False
        position = data + -(-max(0, header.size) // BLOCK) * BLOCK
        if data + header.size > size:
            yield f"cut off at byte {size}"
            return
        if header.type in EXTENSIONS:
            if 0 <= header.size <= MAX_NAME_BYTES:
                long_name = _long_name(header.type, file.read(header.size)) or long_name
            continue
        if header.isreg() and header.type != tarfile.GNUTYPE_SPARSE and header.size >= 0:
            yield Member(long_name or header.name, data, header.size)
        long_name = ""
    if not ended:
        yield f"cut off at byte {size}"


def _next_header(file: BinaryIO, position: int) -> int:
    """Where the next block that looks like a header begins, else the end of the file."""
    file.seek(position)
    while chunk := file.read(CHUNK):
        at = -1
        while (at := chunk.find(MAGIC, at + 1)) >= 0:
            if at % BLOCK == MAGIC_AT:
                return position + at - MAGIC_AT
        position += len(chunk)
    return position


def _long_name(kind: bytes, data: bytes) -> str:
    name = b""
    if kind == tarfile.GNUTYPE_LONGNAME:
        name = data.rstrip(b"\0")
    elif kind == tarfile.XHDTYPE and (match := re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", data)):
        name = match[1]
    return name.decode("utf-8", "surrogateescape")
