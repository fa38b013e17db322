"""Imports point one way: a module may import from its own level or below, never from above.

Read from the source with `ast`, so that imports inside functions count too and nothing has to be importable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY

# Lowest first. A name stands for the module and for everything inside the package. A new module needs a place here.
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "seg2any.allocator",
        "seg2any.command",
        "seg2any.errors",
        "seg2any.files",
        "seg2any.lock",
        "seg2any.precision",
        "seg2any.provenance",
        "seg2any.modes",
    ),
    (
        "seg2any.layout",
        "seg2any.layout_files",
        "seg2any.config",
        "seg2any.config_help",
        "seg2any.config_values",
        "seg2any.flow",
    ),
    ("seg2any.contour",),
    ("seg2any.tokens",),
    ("seg2any.attention",),
    ("seg2any.condition",),
    ("seg2any.models",),
    ("seg2any.latents", "seg2any.noise", "seg2any.settings", "seg2any.text"),
    ("seg2any.prepare",),
    ("seg2any.memory_estimate", "seg2any.step_cache", "seg2any.text_cache"),
    ("seg2any.memory",),
    ("seg2any.true_cfg",),
    ("seg2any.denoise",),
    ("seg2any.pipeline",),
    ("seg2any.preflight", "seg2any.visualize", "seg2any.weightless"),
    ("seg2any.inference",),
    ("seg2any.data",),
    ("seg2any.training", "seg2any.segment"),
    ("seg2any.tiny",),
    ("seg2any",),
    ("eval", "studio", "benchmarks"),
)
PACKAGES = ("seg2any", "eval", "studio", "benchmarks")
OTHER_FOLDERS = ("tests",)  # hold Python files but are no part of the order
ONLY_IN = {"accelerate": ("seg2any.training", "eval.generate_image")}


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file: the modules of the packages, and the scripts beside them."""
    files = [*root.glob("*.py"), *(path for package in PACKAGES for path in (root / package).rglob("*.py"))]
    return {_dotted(path.relative_to(root)): path for path in sorted(files)}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Dotted name and line of everything that a module imports: the submodule where one is named, else the module."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule if submodule in modules else base), node.lineno


def level_of(name: str) -> int | None:
    """The level whose entry is the longest prefix of `name`; None for a module without a place."""
    inside = [
        (len(entry), index)
        for index, level in enumerate(LEVELS)
        for entry in level
        # The package `seg2any` itself has a place, which its modules do not inherit.
        if name == entry or (entry != "seg2any" and name.startswith(f"{entry}."))
    ]
    return max(inside)[1] if inside else None


def violations(root: Path) -> list[str]:
    """One line per import that points up or leaves its package, and per module or folder without a place."""
    modules = modules_of(root)
    found = [
        f"{folder.name}/ holds Python files but has no place in the order"
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if any(folder.glob("*.py")) and folder.name not in (*PACKAGES, *OTHER_FOLDERS)
    ]
    for name, path in modules.items():
        is_script = path.parent == root
        if not is_script and level_of(name) is None:
            found.append(f"{name} has no place in the order")
            continue
        for imported, line in imports_of(name, path, modules):
            where = f"{path.relative_to(root)}:{line} imports {imported}"
            homes = ONLY_IN.get(imported.split(".")[0])
            if homes and not name.startswith(homes):
                found.append(f"{where}, which only {' and '.join(homes)} may")
            if is_script or name == imported:
                continue
            if imported in modules and modules[imported].parent == root:
                found.append(f"{where}, a script")
            elif imported.split(".")[0] in OTHER_FOLDERS:
                found.append(f"{where}, which is for tests only")
            elif imported.split(".")[0] in PACKAGES and _points_up(name, imported):
                found.append(f"{where}, which is above it or unknown")
    return found


def _points_up(name: str, imported: str) -> bool:
    level = level_of(imported)
    return level is None or level > level_of(name)


def test_imports_point_one_way():
    assert len(modules_of(REPOSITORY)) > 20
    assert violations(REPOSITORY) == []


def test_the_renderer_needs_layouts_only():
    """`shapes` makes the truth that everything else is measured with, so nothing measured may be part of it."""
    modules = modules_of(REPOSITORY)
    for name in ("seg2any.data.shapes", "seg2any.data.shapes_draw", "seg2any.data.sample"):
        ours = {imported for imported, _ in imports_of(name, modules[name], modules) if imported.startswith("seg2any")}
        above = {imported for imported in ours if level_of(imported) > level_of("seg2any.layout")}
        assert all(imported.startswith("seg2any.data.") for imported in above), (name, above)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("seg2any/layout.py", "from seg2any.contour import outline", "seg2any/layout.py:1 imports seg2any.contour"),
        ("seg2any/layout.py", "def read():\n    from . import contour", "seg2any/layout.py:2 imports seg2any.contour"),
        ("seg2any/attention/attend.py", "from ..models.adapters import COND", "imports seg2any.models.adapters"),
        ("seg2any/tokens.py", "from seg2any import Seg2AnyPipeline", "seg2any/tokens.py:1 imports seg2any,"),
        ("seg2any/pipeline.py", "import seg2any.segment.propose", "imports seg2any.segment.propose"),
        ("seg2any/pipeline.py", "import eval", "seg2any/pipeline.py:1 imports eval"),
        ("seg2any/data/ade20k.py", "import seg2any.training.cache", "imports seg2any.training.cache"),
        (
            "seg2any/prepare.py",
            "from accelerate.utils import gather",
            "only seg2any.training and eval.generate_image may",
        ),
        ("eval/shapes.py", "import accelerate", "only seg2any.training and eval.generate_image may"),
        ("infer.py", "import accelerate", "only seg2any.training and eval.generate_image may"),
        ("eval/shapes.py", "import infer", "imports infer, a script"),
        ("seg2any/files.py", "from tests.golden_root import SUBSET", "for tests only"),
        ("seg2any/utils.py", "", "seg2any.utils has no place"),
        ("helpers/text.py", "", "helpers/ holds Python files"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, expected: str):
    tree = ["infer.py", "eval/__init__.py", "seg2any/__init__.py", "seg2any/contour.py", "seg2any/layout.py", file]
    for path in tree:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source if path == file else "")
    found = violations(tmp_path)
    assert len(found) == 1 and expected in found[0], found


def test_right_imports_pass(tmp_path: Path):
    for path, source in {
        "train.py": "from seg2any.training.trainer import fit",
        "seg2any/__init__.py": "from seg2any.layout import Layout",
        "seg2any/layout.py": "import numpy\nfrom .errors import UserError",
        "seg2any/errors.py": "",
        "seg2any/training/trainer.py": "import accelerate\nfrom seg2any import layout\nfrom seg2any.data import shapes",
        "seg2any/data/shapes.py": "from seg2any.data import shapes_draw",
        "eval/shapes.py": "from seg2any import Layout\nfrom eval.judge import judge",
        "eval/judge.py": "from seg2any.data.shapes import Scene",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert violations(tmp_path) == []
