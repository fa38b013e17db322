"""docs/architecture.md lists the rooms that exist and the order of imports that is enforced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY
from tests.test_one_way_imports import LEVELS

PAGE = REPOSITORY / "docs" / "architecture.md"


def section(title: str) -> str:
    """Return the text under a heading of the page."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]


def block(title: str) -> str:
    """Return the first code block under a heading."""
    return re.search(r"```\n(.*?)```", section(title), re.S)[1]


def listed_rooms() -> Iterator[str]:
    """Yield the path of every room in the page's tree; two spaces of indentation are one folder."""
    parents: list[str] = []
    for line in block("Rooms").splitlines():
        indent, name = re.match(r"( *)(\w+)/", line).groups()
        parents = [*parents[: len(indent) // 2], name]
        yield "/".join(parents)


def existing_rooms() -> Iterator[str]:
    """Yield the path of every folder of the package that holds modules."""
    for path in (REPOSITORY / "seg2any").rglob("*.py"):
        yield path.parent.relative_to(REPOSITORY).as_posix()


def test_the_tree_lists_the_rooms_that_exist():
    listed = list(listed_rooms())
    assert len(listed) == len(set(listed)) > 10
    assert set(listed) == set(existing_rooms())


def test_the_order_is_the_one_that_is_enforced():
    levels = [re.findall(r"\w+", level) for level in block("Import order").split("<")]
    assert levels == [[name.removeprefix("seg2any.") for name in level] for level in LEVELS]


@pytest.mark.parametrize(
    ("name", "file"),
    [("Base", "bases/base.py"), ("Task", "training/task.py"), ("Session", "generate/session.py")],
)
def test_the_tables_list_every_member_of_a_seam(name: str, file: str):
    table = re.search(rf"^### `{name}` .*?\n(.*?)(?=^##|\Z)", section("Seams"), re.M | re.S)[1]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.M)
    assert {member for row in rows for member in re.findall(r"\w+", row)} == set(members(name, file))


def members(name: str, file: str) -> Iterator[str]:
    """Yield the public attributes and methods that a class declares."""
    tree = ast.parse((REPOSITORY / "seg2any" / file).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in found.body:
        declared = node.target.id if isinstance(node, ast.AnnAssign) else getattr(node, "name", "_")
        if not declared.startswith("_"):
            yield declared


def test_files_that_the_page_names_exist():
    """Names in backticks or prose such as bases/text.py, relative to the package or to the repository."""
    named = set(re.findall(r"[\w/]+/\w+\.py", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 5
    roots = (REPOSITORY, REPOSITORY / "seg2any")
    assert [name for name in sorted(named) if not any(Path(root, name).is_file() for root in roots)] == []
