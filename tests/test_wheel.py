"""The wheels: what they hold, what they require, and an image made by them alone in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.golden_root import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

DEMO = REPOSITORY / "examples" / "shapes"
MADE = """
import seg2any
from seg2any.training import config

demo = seg2any.demo_folder()
pipe = seg2any.Seg2AnyPipeline.from_pretrained("examples/shapes/model")
pipe.load_adapters(demo / "lora")
pipe("examples/shapes/masks/five.json", num_inference_steps=2).images[0].save("five.png")
read = config.load(["config/seg2any_shapes.yaml", "config/memory_24gb.yaml"])
assert read.model.pretrained_model_name_or_path == str(demo / "model")
print(seg2any.__file__, demo, seg2any.__version__, sep="\\n")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Copy what wheels are built from, because building writes folders into the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("seg2any", "config", "eval", "benchmarks", "examples"):
        left_out = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, ignore=left_out)
    return source


@pytest.fixture(scope="module")
def wheels(source: Path, tmp_path_factory) -> dict[str, Path]:
    """Build the wheels without network; map the name of each distribution to its file."""
    folder = tmp_path_factory.mktemp("wheels")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", source, source / "examples", *options], check=True, timeout=240
    )
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def held(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_configs_and_nothing_else(source: Path, wheels: dict[str, Path]):
    package = {path.relative_to(source).as_posix() for path in source.glob("seg2any/**/*") if path.is_file()}
    configs = {
        f"seg2any/{path.relative_to(source).as_posix()}" for path in source.glob("config/**/*") if path.is_file()
    }
    assert held(wheels["seg2any"]) == package | configs
    assert "seg2any/py.typed" in package and "seg2any/config/memory_24gb.yaml" in configs


@pytest.mark.slow
def test_an_index_shows_the_readme_without_links_to_files_beside_it(wheels: dict[str, Path]):
    with zipfile.ZipFile(wheels["seg2any"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        shown = archive.read(name).decode().split("\n\n", 1)[1]
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert shown.startswith("# Seg2Any") and len(links) > 2
    assert all(link.startswith(("https://", "#")) for link in links)


@pytest.mark.slow
def test_the_wheel_of_the_small_model_holds_it_and_no_code(wheels: dict[str, Path]):
    files = [path for path in DEMO.rglob("*") if path.is_file() and path.relative_to(DEMO).parts[0] != "make"]
    assert held(wheels["seg2any_demo"]) == {f"seg2any_demo/{path.relative_to(DEMO).as_posix()}" for path in files}


@pytest.mark.slow
def test_an_image_is_made_by_the_wheels_alone_in_an_empty_folder(wheels: dict[str, Path], tmp_path: Path):
    """Torch and the other packages are those of this environment; this checkout and its installation are not seen."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, *wheels.values()], check=True, timeout=240)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    # Only now, so that pip does not see the packages there; files such as those of editable installs are not followed.
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    (tmp_path / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [python, "-c", MADE], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stderr
    version = re.search('^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert found.stdout.split() == [f"{packages}/seg2any/__init__.py", f"{packages}/seg2any_demo", version]
    command = subprocess.run([python.with_name("seg2any"), "--help"], cwd=tmp_path / "empty", capture_output=True)
    assert command.returncode == 0 and b"generate" in command.stdout and not command.stderr
    with Image.open(tmp_path / "empty" / "five.png") as image:
        assert image.size == (256, 256) and len(image.getcolors(2**16) or range(2**16)) > 100


def pins(name: str) -> dict[str, list[Requirement]]:
    """Read a requirements file: package -> its pins, one for each kind of Python."""
    found: dict[str, list[Requirement]] = {}
    for line in (REPOSITORY / name).read_text().splitlines():
        if line and not line.startswith(("#", "-")):
            requirement = Requirement(line)
            found.setdefault(requirement.name, []).append(requirement)
    return found


def test_the_ranges_of_the_package_hold_the_pins_and_nothing_is_pinned_that_it_does_not_need():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for file, listed in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-train.txt", project["optional-dependencies"]["train"]),
        ("requirements-ray.txt", project["optional-dependencies"]["ray"]),
        ("requirements-docs.txt", project["optional-dependencies"]["docs"]),
    ):
        ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, listed)}
        pinned = pins(file)
        assert pinned.keys() == ranges.keys()
        for name, found in pinned.items():
            versions = [str(requirement.specifier).removeprefix("==") for requirement in found]
            assert all(version in ranges[name] for version in versions), name
            assert all(bound.operator in (">=", "<") for bound in ranges[name]) and len(ranges[name]) == 2, name


def test_the_constraints_are_the_pins_of_what_runs_and_is_tested():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    named = {line.removeprefix("-c ") for line in lines if not line.startswith("#")}
    files = {path.name for path in REPOSITORY.glob("requirements*.txt")}
    own = {"requirements-docs.txt", "requirements-lock.txt"}
    assert named == files - own, "the site and the locks are made in environments of their own"


def test_the_demo_that_the_extra_asks_for_is_the_one_that_is_built():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (asked,) = map(Requirement, project["optional-dependencies"]["demo"])
    demo = tomllib.loads((REPOSITORY / "examples" / "pyproject.toml").read_text())["project"]
    assert asked.name == demo["name"] and demo["version"] in asked.specifier
