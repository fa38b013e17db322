"""Tables of the documentation that repeat the code are those that the code makes."""

from __future__ import annotations

import re

import pytest

from tests.golden_root import REPOSITORY
from tests.pages import BLOCKS, DOCS, MARKED, pages, renewed, table


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_generated_blocks_are_those_that_the_code_makes(page):
    text = page.read_text(encoding="utf-8")
    if renewed(text) != text:
        pytest.fail(f"{page.name}: a table is out of date; run `python -m tests.pages`")


def test_every_block_is_in_a_page_and_closed():
    texts = [page.read_text(encoding="utf-8") for page in pages()]
    found = [name for text in texts for _, name, _ in MARKED.findall(text)]
    assert sorted(found) == sorted(BLOCKS)
    assert len(found) == sum(len(re.findall("<!-- generated: ", text)) for text in texts)


def test_a_block_that_was_changed_by_hand_is_made_again():
    marked = "before\n<!-- generated: parameters -->\nold\n<!-- end -->\nafter"
    text = renewed(marked)
    assert text.startswith("before\n<!-- generated: parameters -->\n| `type` |") and text.endswith(
        "<!-- end -->\nafter"
    )
    assert "| `folder` | `image_root`, `layout_root`, `on_error=skip`" in text and renewed(text) == text


def test_a_table_keeps_bars_of_its_cells():
    assert table("ab", [("1|2", "3")]) == "| a | b |\n|---|---|\n| 1\\|2 | 3 |"


def test_every_page_is_listed_in_the_index_and_in_the_site():
    index, site = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("docs/index.md", "mkdocs.yml"))
    names = {page.name for page in DOCS.glob("*.md")}
    assert names - {"index.md"} == set(re.findall(r"\]\((\w+\.md)\)", index))
    added = {"start.md", "api.md", "contributing.md", "changelog.md"}  # by docs/site/hooks.py
    assert names | added == set(re.findall(r"[\w-]+\.md", site[site.index("nav:") :]))
