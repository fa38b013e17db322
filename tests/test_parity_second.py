"""A second set of X-SAM's cases, computed without the package, through the checks of the recorded one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.parity_xsam import make_second, recorded
from tests.parity_xsam.every import recorded_cases, run_case

NETWORKS = "end_to_end"  # makes models of all kinds, which takes seconds


def check_set(folder: Path, seed: int, kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Write a set of some kinds, run its cases and return their files; its texts are checked with the plain kinds."""
    make_second.write(folder, seed, kinds)
    monkeypatch.setattr(recorded, "ROOT", folder)
    names = [name for name in recorded_cases() if kinds != [NETWORKS] or not name.startswith("text/")]
    for name in names:
        run_case(name)
    return {name.split("/")[0] for name in names}


def test_cases_without_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kinds = [kind for kind in make_second.KINDS if kind != NETWORKS]
    assert check_set(tmp_path, 20, kinds, monkeypatch) == {*kinds, "text"}


@pytest.mark.slow
def test_cases_of_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert check_set(tmp_path, 22, [NETWORKS], monkeypatch) == {NETWORKS, "condition_embeddings"}


def test_it_is_made_without_the_package():
    folder = Path(make_second.__file__).parent
    sources = [folder / "make_second.py", *(folder / "second").glob("*.py")]
    assert len(sources) > 10
    for source in sources:
        assert not re.search(r"^\s*(from|import) seg2any", source.read_text(encoding="utf-8"), re.MULTILINE), source
