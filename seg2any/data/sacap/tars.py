"""Read tars that may be cut off, have holes or hostile names, or not be tars at all.

`tarfile` stops silently at the first damaged header; here the members behind the damage are found again.
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
MAGIC, MAGIC_AT = b"ustar", 257  # bytes of every header block, and where they stand
CHUNK = 1 << 20
# Entries that describe the member after them.
EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
MAX_NAME_BYTES = 1 << 16
MAX_MEMBER_BYTES = 1 << 26  # more than any image or json of SA-1B


@dataclass(frozen=True)
class Member:
    """A file in a tar: its bytes are `offset` to `offset + size` of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """The wanted `members` of a tar by name without folders, and its `damage`, "" for none."""

    members: dict[str, Member]
    damage: str


def find_tars(folders: Sequence[Path]) -> dict[str, Path]:
    """Find every GROUP.tar directly in `folders`: group -> tar; the first folder wins.

    Raises UserError for a folder that does not exist.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--tar_dir {folder}: not a folder; give the folder of sa_000000.tar and its like")
        for path in sorted(folder.glob("[!.]*.tar")):
            found.setdefault(path.stem, path)
    return found


def index_tar(path: Path, wanted: Set[str]) -> Index:
    """Find the `wanted` file names in a tar, reading headers only. Raises OSError.

    Of equal names the last one counts, as for tar itself.
    """
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
    """Read a member's bytes. Raises OSError if it is too large, cut off or cannot be read."""
    if member.size > MAX_MEMBER_BYTES:
        raise OSError(f"it has {member.size} bytes, more than {MAX_MEMBER_BYTES >> 20} MiB")
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise OSError("it is cut off")
    return data


def _is_harmless(name: str) -> bool:
    """Tell whether a name stays below its folder.

    Only its last part is ever used, but names that lead out are not trusted.
    """
    return not name.startswith("/") and ".." not in name.split("/")


def _walk(file: BinaryIO, size: int) -> Iterator[Member | str]:
    """Yield every whole regular file, and a text for every damage.

    size  the tar's bytes
    """
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
                yield f"not a tar archive (it begins with {block[:16]!r})"
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
    """Return where the next block that looks like a header begins, or the end of the file."""
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
