"""Every case recorded from the published X-SAM, one test each.

The checks lie in tests/parity_xsam/, a module for each recorded file, whose CHECKS name them by the beginning of the
case's name. A case without a check fails.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable

import pytest

import tests.parity_xsam
from tests.golden_root import XSAM_SUBSET
from tests.parity_xsam.recorded import ROOT, Case, names_in, parameters, text

MODULES = [
    importlib.import_module(f"tests.parity_xsam.{found.name}")
    for found in pkgutil.iter_modules(tests.parity_xsam.__path__)
]
CHECKS: dict[str, dict[str, Callable[[Case], None]]] = {
    module.FILE: module.CHECKS for module in MODULES if hasattr(module, "CHECKS")
}


def recorded_cases() -> list[str]:
    """List file/case of all that is recorded."""
    found: dict[str, None] = {}
    for path in sorted(ROOT.glob("*.safetensors")):
        if not path.stem.startswith("model_"):
            found |= dict.fromkeys(f"{path.stem}/{name.split('/')[0]}" for name in names_in(path.stem))
            found |= dict.fromkeys(f"{path.stem}/{name}" for name in parameters()[path.stem])
    for part, cases in text().items():
        names = [f"{part}/{name}" for name in cases] if part in NAMED else [part]
        found |= dict.fromkeys(f"text/{name}" for name in names)
    return sorted(name for name in found if not PART.fullmatch(name))


# What several cases share.
PART = re.compile(
    r"[^/]*/(config|weights|connector_layer_\S*_weights|embedding_weight|bg_embeds|images)"
    r"|image_processing/(image_rgb|masks|vprompt)|postprocess/panoptic"
)
NAMED = ("wordings", "cases", "batches", "odd_spans")  # parts of text.json that hold cases by name


@pytest.mark.parametrize("name", recorded_cases())
def test_recorded(name: str):
    file, case = name.split("/", 1)
    check = next((check for begin, check in CHECKS.get(file, {}).items() if case.startswith(begin)), None)
    assert check, f"{name}: has no check"
    check(Case(file, case, parameters().get(file, {}).get(case, {})))


def test_the_committed_subset_is_small():
    assert sum(path.stat().st_size for path in XSAM_SUBSET.iterdir()) <= 2_000_000
