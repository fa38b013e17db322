"""Where a number comes from: commit, versions, machine. Written beside every result and into every run's log."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "seg2any",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "numpy",
    "pillow",
)
PACKAGES += ("opencv-python-headless",)


def circumstances(device: torch.device | str) -> dict[str, object]:
    """Machine, versions and commit, as json can hold them."""
    import torch  # takes seconds: not before those who only read results need it

    device = torch.device(device)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else _processor(torch.backends.cpu.get_cpu_capability())
    return {
        "machine": {
            "device": device.type,
            "name": name,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        # torch's own number names the build, unlike the package's metadata
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | dict(_versions()),
        "commit": commit(),
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the working tree, with "+" if files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor(vector_units: str) -> str:
    """What Linux calls it, with its widest vector units: they decide how fast 16 bit is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({vector_units})"


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
