"""The wheel: the package and its data files, and no top-level module beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(tmp_path: Path):
    source = tmp_path / "source"  # building writes folders into the source
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("seg2any", "eval", "benchmarks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", source, *options], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert installed == {path.relative_to(source).as_posix() for path in source.glob("seg2any/**/*") if path.is_file()}
