"""The locks: they hold every package for every Python with its hashes, and `make` installs from nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.golden_root import REPOSITORY

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
INPUTS = {
    "run": ("", "-build"),
    "test": ("", "-build", "-dev", "-train"),
    "ray": ("", "-build", "-ray"),
    "docs": ("-docs",),
    "lock": ("-lock",),
}
LEFT_OUT = {
    "torch",
    *(line for line in (REPOSITORY / "locks" / "left_out.txt").read_text().splitlines() if line[0] != "#"),
}


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Read a lock: each requirement and its hashes."""
    text = (REPOSITORY / "locks" / f"{lock}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [(Requirement(line.split(" --hash")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def on(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.5"}


def versions(requirements: list[Requirement], python: str | None = None) -> dict[str, str]:
    """Return the version of each package that these pins choose on one Python, this one without an argument."""
    found = {}
    for pin in requirements:
        if pin.marker is None or pin.marker.evaluate(on(python) if python else None):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is chosen twice on {python}"
            found[name] = str(pin.specifier).removeprefix("==")
    return found


def locked(lock: str, python: str | None = None) -> dict[str, str]:
    return versions([pin for pin, _ in entries(lock)], python)


@pytest.mark.parametrize("lock", INPUTS)
def test_every_entry_is_one_version_with_hashes(lock: str):
    for pin, hashes in entries(lock):
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)) and pin.url is None, pin
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), pin


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", INPUTS)
def test_the_pins_are_those_of_the_requirements(lock: str, python: str):
    pins = [
        Requirement(line)
        for part in INPUTS[lock]
        for line in (REPOSITORY / f"requirements{part}.txt").read_text().splitlines()
        if line and line[0] != "#"
    ]
    wanted = versions(pins, python)
    wanted.pop("torch", None)
    assert wanted.items() <= locked(lock, python).items()


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["test", "ray"])
def test_tests_and_clusters_run_with_the_versions_that_users_get(lock: str, python: str):
    assert locked("run", python).items() <= locked(lock, python).items()


def required(names: set[str]) -> set[str]:
    """Return the installed packages that these need on this Python, without torch and what only torch brings."""
    found: set[str] = set()
    waiting = {canonicalize_name(name) for name in names}
    while waiting - found:
        name = (waiting - found).pop()
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and canonicalize_name(
                need.name
            ) not in LEFT_OUT:
                waiting.add(canonicalize_name(need.name))
    return found


@pytest.mark.parametrize("lock", ["run", "test"])
def test_nothing_that_is_needed_here_is_missing_and_its_versions_are_those_of_the_lock(lock: str):
    chosen = locked(lock)
    assert not LEFT_OUT & chosen.keys()
    assert required({*chosen, "torch"}) - {"torch"} == chosen.keys()
    for name, version in chosen.items():
        try:
            assert metadata.version(name) == version, f"{name}: run `make test` again, which installs {version}"
        except metadata.PackageNotFoundError:
            assert lock == "test", f"{name} is not installed"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_by_hash_all_but_torch_and_this_package():
    targets = (".venv/.installed-dev", ".venv-docs/.installed", ".venv-lock/.installed")
    told = subprocess.run(["make", "-n", "-B", *targets], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = [line.split(" -m pip install ")[1] for line in told.stdout.splitlines() if " -m pip install " in line]
    others = [line for line in lines if "--no-deps --require-hashes" not in line]
    assert [line.split(maxsplit=1)[1] for line in others] == [
        "-c constraints.txt torch",
        "--no-deps --no-build-isolation -e .",
    ]
    assert {re.search(r"-r locks/(\w+)\.txt$", line)[1] for line in lines if line not in others} == {*INPUTS} - {"ray"}
