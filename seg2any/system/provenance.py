"""Record where a number comes from: commit, versions, machine and launch.

The record is written beside every result and into every run's log.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "seg2any",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def package_version(root: Path = Path(__file__).parents[2]) -> str:
    """Return the version of seg2any; of a checkout that is not installed, what its pyproject.toml says.

    root  folder of the checkout

    Returns "" where neither is to be found.
    """
    try:
        return metadata.version("seg2any")
    except metadata.PackageNotFoundError:
        pass
    try:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r'^name = "seg2any"\nversion = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else ""


def circumstances(device: torch.device | str) -> dict[str, object]:
    """Describe machine, versions and commit in values that json can hold."""
    import torch  # takes seconds, and reading results needs no torch

    device = torch.device(device)
    return {
        "machine": {
            "device": device.type,
            "name": machine_name(device),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "commit": commit(),
    }


def machine_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with its widest vector units."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor(torch.backends.cpu.get_cpu_capability())


def run_info(device: torch.device | str, processes: int, distributed_type: str) -> dict[str, object]:
    """Describe a start of a training run: `circumstances`, host, launch and command line."""
    return circumstances(device) | {
        "host": platform.node(),
        "processes": processes,
        "distributed_type": distributed_type,
        "command": sys.argv,
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """Return the commit, with "+" if files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor(vector_units: str) -> str:
    """Return the processor's name and its widest vector units, which decide how fast 16 bit is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({vector_units})"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, of torch with its build.

    torch.version names the build, such as 2.13.0+cu130; the package's metadata does not name every build.
    """
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in found:
        from torch.version import __version__ as build

        found["torch"] = str(build)
    return found
