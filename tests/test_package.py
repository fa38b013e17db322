"""The package as a library: its names, its version, what its import costs, and the files that come with it."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import seg2any
from seg2any.layout import Layout
from seg2any.system import provenance, shipped
from seg2any.system.errors import UserError
from tests.golden_root import REPOSITORY


def test_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(seg2any.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {(node.module, alias.name) for node in block.body[:-1] for alias in node.names}
    assert typed == {(home, name) for home, names in seg2any.HOMES.items() for name in names}
    assert sorted({name for _, name in typed} | {"__version__"}) == sorted(seg2any.__all__)
    assert {*seg2any.__all__} <= {*dir(seg2any)}


@pytest.mark.parametrize("name", sorted({*seg2any.__all__} - {"__version__"}))
def test_every_name_can_be_imported(name: str):
    homes = [home for home, names in seg2any.HOMES.items() if name in names]
    assert getattr(seg2any, name) is getattr(importlib.import_module(homes[0]), name)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="'Seg2AnyPipelin'"):
        seg2any.Seg2AnyPipelin  # noqa: B018
    with pytest.raises(ImportError):
        from seg2any import LayoutErorr  # noqa: F401


@pytest.mark.slow
def test_importing_is_light_and_prints_nothing():
    """Heavy packages are imported on first use, and their remarks about others that are missing are not shown."""
    code = (
        "import sys, seg2any; assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys(); seg2any.UserError; "
        "seg2any.Layout; seg2any.__version__; assert not {'torch', 'diffusers'} & sys.modules.keys(); "
        "seg2any.Seg2AnyPipeline; import seg2any.bases.flux1.weightless"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_version_has_one_home(tmp_path: Path, monkeypatch):
    (line,) = (x for x in (REPOSITORY / "pyproject.toml").read_text().splitlines() if x.startswith("version"))
    told = line.split('"')[1]

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", lambda name: {"seg2any": "7.8.9"}[name])
    assert seg2any.__version__ == "7.8.9"
    monkeypatch.setattr(metadata, "version", missing)
    assert seg2any.__version__ == told
    assert provenance.package_version(tmp_path) == ""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "1"\n')
    assert provenance.package_version(tmp_path) == ""


def test_the_citation_is_that_of_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert (REPOSITORY / "NOTICE").read_text().count("arXiv 2506.00596") == 1 and "2506.00596" in paper["url"]
    assert paper["title"] in " ".join((REPOSITORY / "NOTICE").read_text().split())
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Zhang", "Wang", "Li", "Wu"]


class TestShippedFiles:
    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch) -> Path:
        """Lay out a package and its demo as wheels do, and go to an empty folder."""
        (tmp_path / "site" / "seg2any").mkdir(parents=True)
        shutil.copytree(REPOSITORY / "config", tmp_path / "site" / "seg2any" / "config")
        monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "site" / "seg2any")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        return tmp_path / "site"

    def add_demo(self, site: Path, monkeypatch) -> None:
        demo = site / shipped.DEMO_PACKAGE
        for part in ("masks", "model"):
            (demo / part).mkdir(parents=True)
        shutil.copy(REPOSITORY / "examples/shapes/model/model_index.json", demo / "model")
        for name in ("five.json", "five.png"):
            shutil.copy(REPOSITORY / "examples/shapes/masks" / name, demo / "masks")
        monkeypatch.syspath_prepend(site)

    def test_a_checkout_has_them_from_every_folder(self, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shipped.demo_folder() == REPOSITORY / "examples" / "shapes"
        assert shipped.input_path("config/memory_24gb.yaml") == REPOSITORY / "config" / "memory_24gb.yaml"
        assert shipped.model_name("examples/shapes/model") == str(REPOSITORY / "examples/shapes/model")

    def test_an_installed_package_has_the_configs_and_names_what_is_missing(self, installed: Path):
        assert shipped.config_folder() == installed / "seg2any" / "config"
        assert shipped.input_path("config/memory_24gb.yaml").is_file()
        assert shipped.input_path("config/memory_12gb.yaml") == Path("config/memory_12gb.yaml")
        assert shipped.input_path("examples/shapes/model") == Path("examples/shapes/model")
        with pytest.raises(UserError, match=r'pip install "seg2any\[demo\]"'):
            shipped.demo_folder()

    def test_an_installed_demo_is_found(self, installed: Path, monkeypatch):
        self.add_demo(installed, monkeypatch)
        assert shipped.demo_folder() == installed / shipped.DEMO_PACKAGE
        assert len(Layout.read("examples/shapes/masks/five.json").captions) == 5
        assert Layout.find("examples/shapes/masks") == [installed / shipped.DEMO_PACKAGE / "masks" / "five.json"]

    def test_files_of_the_current_folder_come_first_and_other_names_stay(self, installed: Path, monkeypatch):
        Path("config").mkdir()
        Path("config/memory_24gb.yaml").touch()
        assert shipped.input_path("config/memory_24gb.yaml") == Path("config/memory_24gb.yaml")
        assert shipped.model_name("black-forest-labs/FLUX.1-dev") == "black-forest-labs/FLUX.1-dev"
        assert shipped.input_path("config/../../secret") == Path("config/../../secret")
        monkeypatch.setenv("HOME", "/home/me")
        assert shipped.input_path("~/config/x") == Path("/home/me/config/x")
