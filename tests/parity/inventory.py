"""List the contents of a golden root from its files alone.

No recorded case can then be missed silently.

A unit is the smallest thing that a check has to claim: `<section>/<case>` for a case of an index, `<section>/<name>`
for a folder or a json file that no index lists, `bugs_demo/<key>` for a recorded defect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

SECTIONS = (
    "attn_mask",
    "contour",
    "deeplab",
    "filter",
    "lora_keys",
    "pipeline",
    "sampler",
    "train",
    "transformer",
)
DEFECTS = "bugs_demo.json"
# Folders of input that cases share; the units beside them use these.
SHARED_FOLDERS = {"model", "checkpoint", "cases"}


def sections(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir())


def missing_parts(root: Path) -> list[str]:
    """List the parts of a golden set that `root` lacks."""
    parts = [*SECTIONS, DEFECTS.removesuffix(".json")]
    return [part for part in parts if not (root / part).is_dir() and not (root / f"{part}.json").is_file()]


def units(root: Path) -> list[str]:
    """List every unit under `root`, sorted."""
    found = {f"{section}/{name}" for section in sections(root) for name in _section_units(root / section)}
    defects = root / DEFECTS
    if defects.is_file():
        found |= {f"bugs_demo/{key}" for key in set(json.loads(defects.read_text())) - {"versions"}}
    return sorted(found)


def _section_units(section: Path) -> set[str]:
    names = {folder.name for folder in section.iterdir() if folder.is_dir() and not _is_shared(folder)}
    for path in section.glob("*.json"):
        content = json.loads(path.read_text() or "null")
        if path.stem == "index":
            names |= set(content["cases"]) | ({"bugs_demo"} & set(content))
        elif path.stem == section.name:  # one file holds the whole section: its keys are the units
            names |= set(content) - {"versions"}
            names |= {
                f"tables/{number}/runs" for number, table in enumerate(content.get("tables", [])) if "runs" in table
            }
        elif content:
            names.add(path.stem)
    return names


def _is_shared(folder: Path) -> bool:
    """Return whether a folder is input of cases: a known name, or photos and annotations of a training run."""
    is_data = folder.parent.name == "train" and not any(folder.rglob("*.safetensors"))
    return folder.name in SHARED_FOLDERS or (is_data and not (folder / "index.json").exists())


def unclaimed(unit_names: Iterable[str], claims: Iterable[str]) -> list[str]:
    """List the units that no claim names.

    A claim names a unit if it equals it, or if it starts with it and continues with a non-word character.
    """
    text = "\n".join(claims)
    return [unit for unit in unit_names if not re.search(rf"(?m)^{re.escape(unit)}(?!\w)", text)]


def listed_faults(root: Path) -> list[str]:
    """List files of manifest.json that are missing, or that hold other tensors than it says; [] without one."""
    manifest = root / "manifest.json"
    files = json.loads(manifest.read_text())["files"] if manifest.is_file() else []
    return [entry["path"] for entry in files if not _is_as_listed(root / entry["path"], entry)]


def _is_as_listed(path: Path, entry: dict) -> bool:
    if "tensors" not in entry or not path.is_file():
        return path.is_file()
    with safe_open(path, "pt") as tensors:
        slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        return entry["tensors"] == {key: [one.get_dtype(), one.get_shape()] for key, one in slices.items()}
