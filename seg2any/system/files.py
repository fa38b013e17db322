"""Write files that are complete or absent, and lock files against other processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from seg2any.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STALE_SECONDS = 600  # a temporary file that nobody has written to for so long: its writer was killed
TEMPORARY_BYTES = 255  # the most of a temporary file's name
RUNNING = ".running"  # the lock file of a folder that one process at a time works in


def user_path(text: str | os.PathLike) -> Path:
    """Return a path as people write it: ~ is the home folder, also where the shell has left it."""
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; it replaces `path` on success and is removed on any error.

    The temporary name keeps the suffix, because image libraries choose the format from it; it is unique, so several
    writers may race for the same file; and it is short, so that it is legal wherever `path` is. The file gets the
    umask's permissions; safetensors would create it with mode 600.
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


def check_folder(folder: Path, flag: str) -> None:
    """Raise UserError if the folder of a flag is a file or lies below one; it need not exist."""
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.absolute().parents)):
        raise UserError(f"{flag} {folder}: is a file or below one; give a folder that can be written to")


def append_lines(path: Path, text: str) -> int:
    """Add whole lines to a file: all of `text` or nothing, and on the disk when this returns.

    A line that a killed process left unfinished stays, on a line of its own. For one writer at a time. Returns the
    byte of the file at which `text` begins.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        start = b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
        data = start + text.rstrip("\n").encode() + b"\n"
        try:
            if os.write(file, data) != len(data):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
        return size + len(start)
    finally:
        os.close(file)


def check_name(path: Path) -> None:
    """Raise UserError if a name in `path`, or all of it, is longer than the file system takes."""
    place = _existing(path)
    longest, most = (_limit(place, name, usual) for name, usual in (("PC_NAME_MAX", 255), ("PC_PATH_MAX", 4096)))
    for part in path.parts:
        if (size := len(os.fsencode(part))) > longest:
            raise UserError(f"{path}: a name has {size} bytes, and {place} takes {longest}; shorten it")
    beside = path.absolute().with_name("x" * TEMPORARY_BYTES)  # the temporary file
    if max(len(os.fsencode(one)) for one in (path.absolute(), beside)) >= most:
        raise UserError(f"{path}: the path is longer than {most - 1} bytes; choose another folder")


def takes_capitals_for_small(folder: Path) -> bool:
    """Tell whether names that differ only in capitals are one file, as on macOS, Windows and memory cards.

    Nothing is written: the name of an existing folder is spelt the other way.
    """
    place = _existing(folder.absolute())
    for known in (place, *place.parents):
        other = known.with_name(known.name.swapcase()) if known.name else known
        if other != known:
            return os.path.exists(other) and os.path.samefile(known, other)
    return False


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.absolute().parents) if os.path.exists(one))


def _limit(place: Path, name: str, usual: int) -> int:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no pathconf
        return os.pathconf(place, name)
    return usual


def remove_stale(folder: Path) -> None:
    """Remove temporary files that killed writers have left in `folder`; safetensors calls its own .tmpXXXXXX."""
    for path in (*folder.glob(".*.tmp*"), *folder.glob(".tmp??????")):
        with contextlib.suppress(OSError):  # its writer has just renamed it, or this folder is read-only
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file by key, so that files of equal content are equal.

    The library writes the metadata in another order each time.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:  # longer only if the library escapes characters that json does not: left as it is
            file.seek(8)
            file.write(ordered.ljust(length))


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[bool]:
    """Lock `path`, creating it, during the block; yield False if another process holds it.

    shared  several processes may hold the lock, if all of them ask for it `shared`

    The kernel keeps the lock for this process, so a killed process leaves none behind and forked children do not hold
    it. On network file systems it counts for all machines. Where locking is unavailable (Windows, some file systems)
    the caller is warned and the lock counts as acquired. A process that locks a file twice gets True both times, and
    loses the lock at the end of the first of the two blocks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", opener=_no_link) as file:
        yield _acquire(file, shared)


def _no_link(path: str, flags: int) -> int:
    """Open a lock file; in a folder that others write to, a link of its name would make a file elsewhere."""
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a link, where this program keeps a file of its own; remove it") from None
        raise


def _acquire(file: IO, shared: bool) -> bool:
    if fcntl:
        with contextlib.suppress(OSError):
            try:
                fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            return True
    warnings.warn(f"{file.name}: files cannot be locked here; do not start the same run twice at once", stacklevel=4)
    return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the output folder of a run for this process until the end of the block.

    Two runs would remove each other's unfinished checkpoints. Raises UserError if another process holds `folder`.
    """
    with locked(folder / RUNNING) as is_ours:
        _require(is_ours, folder)
        yield


def check_free(folder: Path) -> None:
    """Raise UserError if another process is inside `held(folder)`."""
    if (folder / RUNNING).exists():
        with locked(folder / RUNNING, shared=True) as is_free:  # shared: all processes of one run ask at the same time
            _require(is_free, folder)


def _require(is_free: bool, folder: Path) -> None:
    if not is_free:
        raise UserError(
            f"project.output_dir: another run is writing into {folder}; wait for it, end it, or choose another folder"
        )
