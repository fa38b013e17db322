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

# Folders of input that cases share; the units beside them use these.
SHARED_FOLDERS = {"model", "checkpoint", "cases", "sacap_data"}


def sections(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir())


def units(root: Path) -> list[str]:
    """List every unit under `root`, sorted."""
    found = {f"{section}/{name}" for section in sections(root) for name in _section_units(root / section)}
    defects = root / "bugs_demo.json"
    if defects.is_file():
        found |= {f"bugs_demo/{key}" for key in json.loads(defects.read_text())}
    return sorted(found)


def _section_units(section: Path) -> set[str]:
    names = {folder.name for folder in section.iterdir() if folder.is_dir()} - SHARED_FOLDERS
    for path in section.glob("*.json"):
        content = json.loads(path.read_text())
        if path.stem == "index":
            names |= set(content["cases"]) | ({"bugs_demo"} & set(content))
        elif path.stem == section.name:  # one file holds the whole section: its keys are the units
            names |= set(content) - {"versions"}
            names |= {
                f"tables/{number}/runs" for number, table in enumerate(content.get("tables", [])) if "runs" in table
            }
        else:
            names.add(path.stem)
    return names


def unclaimed(unit_names: Iterable[str], claims: Iterable[str]) -> list[str]:
    """List the units that no claim names.

    A claim names a unit if it equals it, or if it starts with it and continues with a non-word character.
    """
    text = "\n".join(claims)
    return [unit for unit in unit_names if not re.search(rf"(?m)^{re.escape(unit)}(?!\w)", text)]
