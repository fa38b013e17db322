"""Put config/ into the wheel, as seg2any/config; pyproject.toml says everything else."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path(__file__).parent / "config"


class BuildWithConfigs(build_py):
    """Build the package with a copy of the configs, which a checkout has beside it."""

    def run(self) -> None:
        """Build, and copy the configs unless the installation is editable."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "seg2any" / "config"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build in the same folder
            shutil.copytree(CONFIGS, target)


setup(cmdclass={"build_py": BuildWithConfigs})
