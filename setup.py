"""Put config/ into the wheel, as seg2any/config, and give a package index the README with links that work there.

pyproject.toml says everything else.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CONFIGS = ROOT / "config"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")  # of Markdown, to a file beside it


class BuildWithConfigs(build_py):
    """Build the package with a copy of the configs, which a checkout has beside it."""

    def run(self) -> None:
        """Build, and copy the configs unless the installation is editable."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "seg2any" / "config"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build in the same folder
            shutil.copytree(CONFIGS, target)


def readme_of_an_index() -> str:
    """Return the README with links to the files of the repository that [project.urls] names.

    Without a Repository there, links become their words and pictures their descriptions.
    """
    found = re.search(r'^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)

    def absolute(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if found is None:
            return f"*{words}*" if picture else words
        return f"{picture}[{words}]({found[1]}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return LINK.sub(absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=readme_of_an_index(),
    long_description_content_type="text/markdown",
)
