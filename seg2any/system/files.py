"""Files are complete or absent, never half-written."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 600  # no writer rests so long: it was killed


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` on success and is removed on any error.

    The temporary name keeps the suffix, because image libraries choose the format from it, and is unique, so several
    writers may race for the same file; it is short, so what has a legal name can be written. Whoever writes it, others
    may read it as the umask says: safetensors lets nobody.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:32]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in another one each time, and files of
    equal content shall be equal."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:  # else escaped otherwise, and left as it is
            file.seek(8)
            file.write(ordered.ljust(length))


def remove_stale(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder`."""
    for path in folder.glob(".*.tmp*"):
        with contextlib.suppress(OSError):  # its writer has renamed it, or nothing can be removed here
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
