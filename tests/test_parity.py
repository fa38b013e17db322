"""Every case recorded from the published implementation, one test each.

The checks live in tests/parity/, one module per section. Cases without a check are listed as skipped by name, with the
reason; a case that is neither checked nor listed fails the suite.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

import tests.parity
from tests.golden_root import SUBSET, golden_root
from tests.parity.inventory import listed_faults, missing_parts, sections, unclaimed, units
from tests.parity.make_subset import EXAMPLE

ROOT = golden_root()
NOT_SECTIONS = {"inventory", "make_subset"}
SUBSET_LIMIT = 4_000_000  # bytes


def _full_id(section: str, name: str) -> str:
    return name if name.startswith(f"{section}/") else f"{section}/{name}"


def _collect() -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Collect checks and pending reasons of every section module, by full id."""
    checks, pending = {}, {}
    for name in sorted(module.name for module in pkgutil.iter_modules(tests.parity.__path__)):
        if name in NOT_SECTIONS or name.startswith("_"):
            continue
        module = importlib.import_module(f"tests.parity.{name}")
        if not hasattr(module, "cases"):
            continue  # a helper of the sections
        for case, check in sorted(module.cases(ROOT).items()):
            checks[_full_id(name, case)] = check
        for case, reason in sorted(getattr(module, "pending", lambda root: {})(ROOT).items()):
            pending[_full_id(name, case)] = reason
    return checks, pending | dict.fromkeys(missing_parts(ROOT), "the golden set lacks this part")


CHECKS, PENDING = _collect()
SLOW = ("pipeline", "train", "transformer")  # sections that run a network


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case.startswith(SLOW) else ()) for case in sorted(CHECKS)]
)
def test_parity(case: str):
    CHECKS[case]()


@pytest.mark.parametrize("case", sorted(PENDING))
def test_pending(case: str):
    pytest.skip(f"pending: {case}: {PENDING[case]}")


def test_every_recorded_case_is_checked_or_pending():
    recorded = units(ROOT)
    assert recorded, f"{ROOT} holds no golden case"
    missing = unclaimed(recorded, [*CHECKS, *PENDING])
    assert not missing, (
        f"{len(missing)} of {len(recorded)} golden cases have no check and are not listed as pending: {missing}"
    )


def test_the_golden_set_holds_what_its_manifest_lists():
    faults = listed_faults(ROOT)
    assert not faults, f"{ROOT}: {len(faults)} files differ from manifest.json: {faults}"


def test_nothing_is_both_checked_and_pending():
    assert not set(CHECKS) & set(PENDING)


def test_inventory_sees_cases_folders_files_and_defects(tmp_path: Path):
    for path, content in {
        "filter/index.json": {"versions": {}, "cases": {"b1": {}, "b10": {}}, "bugs_demo": {}},
        "filter/extra.json": ["a record"],
        "train/extra.json": {},
        "train/run/index.json": {"cfg": {}},
        "train/photos/im0.json": {},
        "sampler/sampler.json": {"versions": {}, "tables": [{"runs": []}]},
        "bugs_demo.json": {"a bug": 1},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    assert sections(tmp_path) == ["filter", "sampler", "train"]
    expected = ["bugs_demo/a bug", "filter/b1", "filter/b10", "filter/bugs_demo", "filter/extra"]
    assert units(tmp_path) == [*expected, "sampler/tables", "sampler/tables/0/runs", "train/run"]
    assert unclaimed(["filter/b1", "filter/b10"], ["filter/b10/ids"]) == ["filter/b1"]
    assert unclaimed(["filter/b1", "a/filter"], ["filter/b1-kept", "x/a/filter"]) == ["a/filter"]


def test_a_golden_set_without_a_part_skips_it_by_name(tmp_path: Path):
    (tmp_path / "filter").mkdir()
    (tmp_path / "bugs_demo.json").write_text("{}")
    parts = missing_parts(tmp_path)
    assert {"train", "pipeline", "deeplab"} <= set(parts) and not {"filter", "bugs_demo"} & set(parts)


def test_a_file_that_differs_from_the_manifest_is_named(tmp_path: Path):
    shutil.copytree(SUBSET / "filter", tmp_path / "filter")
    name = next((tmp_path / "filter").glob("*.safetensors")).relative_to(tmp_path).as_posix()
    with safe_open(tmp_path / name, "pt") as tensors:
        listed = {key: ["F32", tensors.get_slice(key).get_shape()] for key in tensors.keys()}  # noqa: SIM118
    key = next(iter(listed))
    files = [{"path": name, "tensors": listed}, {"path": "filter/index.json"}]
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    assert listed_faults(tmp_path) == []
    listed[key] = ["F32", [1, *listed[key][1]]]
    (tmp_path / "manifest.json").write_text(json.dumps({"files": [*files, {"path": "filter/gone.json"}]}))
    assert listed_faults(tmp_path) == [name, "filter/gone.json"]


def test_committed_subset_is_whole_small_and_free_of_published_examples():
    files = {path.relative_to(SUBSET).as_posix(): path.read_bytes() for path in SUBSET.rglob("*") if path.is_file()}
    listed = json.loads((SUBSET / "manifest.json").read_text())["files"]
    assert {entry["path"]: entry["sha256"] for entry in listed} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name not in ("manifest.json", "README.md")
    }
    assert sum(map(len, files.values())) <= SUBSET_LIMIT
    assert not [name for name in files if name.endswith(f"/{EXAMPLE}")]
