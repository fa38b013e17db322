"""Examine the installation for `doctor`: Python, packages, torch, and whether the pipeline can be imported."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from seg2any.commands.finding import BAD, GOOD, POOR, Finding
from seg2any.system.errors import shown

PACKAGE = "seg2any"
OLDEST, NEWEST = (3, 10), (3, 13)  # versions of Python that the tests run on
NVIDIA = Path("/proc/driver/nvidia/version")  # exists where a driver is loaded


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Compare a version of Python with those that are supported."""
    told = f"{platform.python_version()} in {sys.prefix}"
    if OLDEST <= version <= NEWEST:
        return Finding("python", GOOD, told)
    oldest, newest = (".".join(map(str, one)) for one in (OLDEST, NEWEST))
    fix = f"make an environment with Python {oldest} to {newest}: python{newest} -m venv .venv"
    return Finding("python", BAD if version < OLDEST else POOR, f"{told}; tested are {oldest} to {newest}", fix)


def packages(required: Iterable[str] | None = None) -> Iterator[Finding]:
    """Compare the installed packages with the requirements of this one, as PEP 508 writes them."""
    try:
        required = list(metadata.requires(PACKAGE) or () if required is None else required)
    except metadata.PackageNotFoundError:
        yield Finding("packages", POOR, f"{PACKAGE} runs from its folder and is not installed", "pip install -e .")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packages", BAD, "packaging is missing, so versions cannot be compared", "pip install packaging")
        return
    wanted, optional, wrong = 0, [], []
    for one in map(Requirement, required):
        if one.marker and not one.marker.evaluate({"extra": ""}):
            if "extra" in str(one.marker) and _version(one.name) is None:
                optional.append(one.name)
            continue
        wanted += 1
        found = _version(one.name)
        if found is None or not one.specifier.contains(found, prereleases=True):
            wrong.append((one, found))
    for one, found in wrong:
        told = f"{one.name} is {'missing' if found is None else found}; needed is {one.name}{one.specifier}"
        yield Finding("packages", BAD, told, f'pip install "{one.name}{one.specifier}"')
    if not wrong:
        extra = f"; optional and not here: {', '.join(dict.fromkeys(optional))}" if optional else ""
        yield Finding("packages", GOOD, f"{wanted} required ones are installed{extra}")


def torch() -> Finding:
    """Import torch, and tell whether its build suits the machine's GPU."""
    try:
        found = importlib.import_module("torch")
    except Exception as error:  # a broken library raises nearly every kind
        return Finding("torch", BAD, f"cannot be imported ({_brief(error)})", "pip install --force-reinstall torch")
    build = f"{found.__version__}, CUDA {found.version.cuda or 'none'}"
    if not NVIDIA.exists() or found.cuda.is_available():
        return Finding("torch", GOOD, build)
    if found.version.cuda is None:
        fix = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        return Finding("torch", BAD, f"{build}: a build for CPUs, and this machine has an NVIDIA GPU", fix)
    fix = "update the driver: https://www.nvidia.com/drivers; `nvidia-smi` shows the CUDA version that it takes"
    return Finding("torch", BAD, f"{build}: cannot use this machine's NVIDIA GPU", fix)


def pipeline() -> Finding:
    """Import everything that makes images."""
    try:
        importlib.import_module("seg2any.generate.session")
    except Exception as error:
        return Finding(
            "pipeline", BAD, f"cannot be imported ({_brief(error)})", "pip install --force-reinstall seg2any"
        )
    return Finding("pipeline", GOOD, "can be imported")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _brief(error: Exception) -> str:
    return shown(" ".join(f"{type(error).__name__}: {error}".split()), 160)
