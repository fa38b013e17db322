"""The page of promises: each has a test, and that test exists."""

from __future__ import annotations

import ast
import re

from tests.golden_root import REPOSITORY

PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<promise>[^|]+[.]) \| `(?P<file>test_\w+)::(?P<name>test_\w+)` \|$", re.M)


def test_every_promise_names_a_test_that_exists():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    found = list(ROW.finditer(PAGE))
    assert len(found) == len(rows) >= 20, [line for line in rows if not ROW.match(line)]
    for match in found:
        tree = ast.parse((REPOSITORY / "tests" / f"{match['file']}.py").read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert match["name"] in names, match["name"]
