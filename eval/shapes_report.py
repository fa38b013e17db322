"""How the results on the `shapes` world are shown: a table, the bars, one JSON file that says how they came about."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from seg2any.files import atomic_write

COLUMNS = {  # measure -> heading
    "colour_right": "colour",
    "pattern_right": "pattern",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "leak": "leak",
    "background_right": "background",
    "clutter": "clutter",
}
FRACTIONS = ("iou", "boundary_iou")  # the others are shown in per cent
PACKAGES = ("seg2any", "diffusers", "transformers", "peft", "numpy", "pillow", "opencv-python-headless")


@dataclass(frozen=True)
class Bar:
    """A measure that has to reach, or with `at_most` not to exceed, a limit."""

    measure: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign, word = ("<=" if self.at_most else ">="), ("reached" if self.passed else "MISSED")
        return f"{self.measure:<14} {self.value:.4f} {sign} {self.limit:.4f}  {word}"


def bars(results: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    """The bars for generated images; the boundary is measured against what the VAE leaves of it."""
    generated, round_trip = results["generated"], results["VAE round trip"]
    return [
        Bar("colour_right", generated["colour_right"], 0.95),
        Bar("iou", generated["iou"], 0.90),
        Bar("boundary_iou", generated["boundary_iou"], 0.8 * round_trip["boundary_iou"]),
        Bar("leak", generated["leak"], 0.02, at_most=True),
    ]


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One line per source of images, one column per measure."""
    widths = {measure: max(8, len(heading)) for measure, heading in COLUMNS.items()}
    headings = " ".join(f"{heading:>{widths[measure]}}" for measure, heading in COLUMNS.items())
    lines = [f"{'':<24}{headings}"]
    for source, means in results.items():
        cells = (f"{_shown(measure, means[measure]):>{width}}" for measure, width in widths.items())
        lines.append(f"{source:<24}{' '.join(cells)}")
    return "\n".join(lines)


def _shown(measure: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if measure in FRACTIONS else f"{100 * value:.1f} %"


def circumstances(device: torch.device) -> dict:
    """Machine, versions and commit."""
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # names the build, unlike the package's metadata
            **{package: version(package) for package in PACKAGES},
        },
        "commit": commit(),
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the working tree, with "+" if files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_report(report: Mapping, folder: Path) -> Path:
    """Write `folder`/report.json and return its path."""
    path = folder / "report.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    return path
