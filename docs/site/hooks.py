"""Add to the site the pages that lie beside docs/, and the Python interface by its docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {"README.md": "start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, and one page of the interface."""
    for name, page in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(_from_the_root, text)))
    files.append(File.generated(config, "api.md", content=interface()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to the repository's root lead to its pages here."""
    return LINK.sub(lambda link: f"]({BESIDE.get(link[1].removeprefix('../'), link[1])}{link[2] or ''})", markdown)


def _from_the_root(link: re.Match[str]) -> str:
    """Return a link of a page in the root as one of a page in docs/."""
    return f"]({link[1].removeprefix('docs/')}{link[2] or ''})"


def interface() -> str:
    """Return the page of all names that `seg2any` exports, from their docstrings."""
    sys.path.insert(0, str(ROOT))  # here: MkDocs restores the path after it has loaded this file
    import seg2any

    lines = ["# Python interface", "", "All of these are importable from `seg2any`.", ""]
    for module, names in seg2any.HOMES.items():
        lines += [f"::: {module}.{name}\n" for name in names]
    return "\n".join(lines)
