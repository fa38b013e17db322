"""List the cases of the recorded set, and run each by its check."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable

import pytest

import tests.parity_xsam
from tests.parity_xsam import recorded
from tests.parity_xsam.recorded import Case, Lacking, names_in, parameters, text

MODULES = [
    importlib.import_module(f"tests.parity_xsam.{found.name}")
    for found in pkgutil.iter_modules(tests.parity_xsam.__path__)
    if found.name != "every"
]
CHECKS: dict[str, dict[str, Callable[[Case], None]]] = {
    module.FILE: module.CHECKS for module in MODULES if hasattr(module, "CHECKS")
}
# What several cases share.
PART = re.compile(
    r"[^/]*/(config|weights|connector_layer_\S*_weights|embedding_weight|bg_embeds|images)"
    r"|image_processing/(image_rgb|masks|vprompt)|postprocess/panoptic"
)
NAMED = ("wordings", "cases", "batches", "odd_spans")  # parts of text.json that hold cases by name


def recorded_cases() -> list[str]:
    """List file/case of all that is recorded."""
    found: dict[str, None] = {}
    for path in sorted(recorded.ROOT.glob("*.safetensors")):
        if not path.stem.startswith("model_"):
            found |= dict.fromkeys(f"{path.stem}/{name.split('/')[0]}" for name in names_in(path.stem))
            found |= dict.fromkeys(f"{path.stem}/{name}" for name in parameters().get(path.stem, {}))
    for part, cases in text().items():
        names = [f"{part}/{name}" for name in cases] if part in NAMED else [part]
        found |= dict.fromkeys(f"text/{name}" for name in names)
    return sorted(name for name in found if not PART.fullmatch(name))


def run_case(name: str) -> None:
    """Check one case, file/name; skip it if it needs another that the set lacks.

    Raises AssertionError if it has no check, or differs from the record.
    """
    file, case = name.split("/", 1)
    check = next((check for begin, check in CHECKS.get(file, {}).items() if case.startswith(begin)), None)
    assert check, f"{name}: has no check"
    try:
        check(Case(file, case, parameters().get(file, {}).get(case, {})))
    except Lacking as error:
        pytest.skip(str(error))
