"""The script that tries claims of equal numbers under several kinds of CPU kernels."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import processors
from tests.golden_root import REPOSITORY


def marked_claims() -> dict[str, str]:
    """Read the claim of every marked test from the sources."""
    found = {}
    for file in processors.files_with_claims():
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.FunctionDef):
                marks = [one for one in node.decorator_list if "same_numbers" in ast.unparse(one)]
                found |= {f"{Path(file).name}::{node.name}": mark.args[0].value for mark in marks}
    return found


def test_the_documentation_lists_every_claim_with_its_bound():
    rows = {tuple(cell.strip() for cell in claim.split("|")) for claim in marked_claims().values()}
    text = (REPOSITORY / "docs" / "parity.md").read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    listed = {(row[0].strip(), row[1].strip()) for row in table if len(row) == 3} - {("These, and those", "agree")}
    assert rows == {row for row in listed if not set(row[0]) <= set("-")}


@pytest.mark.parametrize("kernels", ["default", "avx2"])
def test_the_settings_select_torchs_kernels(kernels):
    code = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
    told = processors.settings(kernels)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == kernels


def test_intels_library_is_told_too_on_intels_processors_only(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processors, "CPU_INFO", tmp_path / "cpuinfo")
    for vendor, is_told in (("GenuineIntel", True), ("AuthenticAMD", False)):
        (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\n")
        assert ("MKL_ENABLE_INSTRUCTIONS" in processors.settings("avx2")) == is_told
        assert processors.settings("own") == {}


def test_a_report_gives_outcomes_by_claim_and_failures_by_name(tmp_path: Path):
    claim = '<properties><property name="claim" value="a, and b | equal"/></properties>'
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite>"
        f'<testcase classname="tests.test_a" name="one">{claim}</testcase>'
        f'<testcase classname="tests.test_a" name="two">{claim}<failure/></testcase>'
        f'<testcase classname="tests.test_a" name="three">{claim}<skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    outcomes, failed = processors.read_report(tmp_path / "report.xml")
    assert outcomes == {"a, and b | equal": Counter(passed=1, failed=1, skipped=1)}
    assert failed == ["tests.test_a::two"]
    assert processors.table({"own, idle": outcomes}).splitlines()[1] == "a, and b | equal | 1/1"


def test_busy_processes_end_with_the_context():
    with processors.busy_processes(2) as running:
        assert [process.poll() for process in running] == [None, None]
    assert None not in [process.poll() for process in running]
