"""Ask the model hub for files, and say in one line why it does not give them.

A name of the hub is owner/name, or owner/name@revision with a commit, tag or branch: only a commit always means the
same files.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path, PurePosixPath

from seg2any.system.errors import UserError, brief, shown

PART = re.compile(r"[A-Za-z0-9_][\w.-]*")  # of an id, and of a folder in a repository
REVISED = re.compile(rf"(?P<name>{PART.pattern}/{PART.pattern})@(?P<revision>.*)", re.S)
TIMEOUT = 10.0  # seconds for the hub's first answer


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE keeps the hub away."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def split_revision(name: str) -> tuple[str, dict[str, str]]:
    """Split owner/name@revision into the id and the option by which the hub's libraries take the revision.

    A name without one, or of something on the disk, stays whole, without options. Raises UserError for what can be no
    revision.
    """
    found = REVISED.fullmatch(name)
    if found is None or Path(name).exists():
        return name, {}
    if not PART.fullmatch(found["revision"]):
        raise UserError(f"{shown(name)}: names no revision; write a commit, tag or branch behind @, or no @")
    return found["name"], {"revision": found["revision"]}


def cached_folder(name: str, file: str) -> Path | None:
    """Return the folder of a repository in the hub's cache, which has `file` directly in it; None without one."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = split_revision(name)
    found = try_to_load_from_cache(repository, file, **revision)
    return Path(found).parent if isinstance(found, str) else None


def check_access(name: str, file: str) -> None:
    """Ask once for a file of the repository `name`, unless it is at hand or `name` is on the disk or no id.

    Raises OSError at once, from the hub's error: its libraries would try five times before they give up.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    name, revision = split_revision(name)
    parts = name.split("/")
    if Path(name).exists() or is_offline() or len(parts) != 2 or not all(map(PART.fullmatch, parts)):
        return
    if isinstance(try_to_load_from_cache(name, file, **revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, file, **revision), timeout=TIMEOUT)
    except Exception as error:  # the hub's libraries raise those of several others
        raise OSError(str(error)) from error


def problem(name: str, error: BaseException | None) -> str:
    """Say why the hub does not give `name`, and what to do, from the error of its libraries or of one that wraps it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = split_revision(name)
    while error is not None and not isinstance(error, HfHubHTTPError):  # some libraries wrap it several times
        cause, error = error, error.__cause__ or error.__context__
    if isinstance(error, GatedRepoError):
        return f"is gated; accept its licence at https://huggingface.co/{name} and log in with `hf auth login`"
    if isinstance(error, RemoteEntryNotFoundError):
        return "is on the hub, but without the files that are needed; check the id"
    if isinstance(error, RevisionNotFoundError):
        return f"is on the hub, but without the revision {revision.get('revision', 'main')}; correct it"
    status = error.response.status_code if error is not None and error.response is not None else None
    if status in (401, 403, 404):
        return "no such folder, and none on the hub, or it is private; check the id, and log in with `hf auth login`"
    if is_offline():
        return "no such folder, and HF_HUB_OFFLINE keeps the hub away; give a local folder or unset it"
    return f"no such folder, and the hub did not give it ({brief(error or cause, 160)}); check the id and the network"


def names_repository(path: Path) -> bool:
    """Tell whether a relative path that is not on the disk may be owner/name of the hub, with folders behind it.

    Raises UserError for what can be no revision behind owner/name@.
    """
    if len(path.parts) < 2 or Path(path.parts[0]).exists():
        return False
    repository, _ = split_revision("/".join(path.parts[:2]))
    return all(map(PART.fullmatch, (*repository.split("/"), *path.parts[2:])))


@functools.cache
def fetch_folder(path: Path, flag: str, landmark: str, files: tuple[str, ...]) -> Path:
    """Download a folder of a repository, given as owner/name[@revision]/folder, and return where it is on the disk.

    landmark  the file that the folder must have, a path inside it
    files     patterns of the files to download, relative to the folder

    Raises UserError; the error names the folders that have the landmark if this one does not.
    """
    from huggingface_hub import HfApi, snapshot_download

    given, inner = "/".join(path.parts[:2]), PurePosixPath(*path.parts[2:])
    name, revision = split_revision(given)
    wanted = [str(inner / pattern) for pattern in files]
    try:
        there = None if is_offline() else HfApi().list_repo_files(name, **revision)
        if there is not None and str(inner / landmark) not in there:
            raise UserError(f"{flag} {path}: {_elsewhere(given, landmark, there)}")
        found = snapshot_download(name, allow_patterns=wanted, local_files_only=is_offline(), **revision)
        return Path(found) / inner
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{flag} {path}: {problem(given, error)}") from error


def _elsewhere(name: str, landmark: str, there: list[str]) -> str:
    folders = [file.removesuffix(landmark).rstrip("/") for file in there if f"/{file}".endswith(f"/{landmark}")]
    found = ", ".join(f"{name}/{folder}".rstrip("/") for folder in folders[:4])
    hint = f"give {found}" if found else "check the id"
    return f"has no {landmark} on the hub; {hint}"
