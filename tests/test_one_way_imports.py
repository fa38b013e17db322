"""Imports between rooms: they point one way, from commands to system, without circles.

Read from the source with `ast`, so that imports inside functions count too and nothing has to be importable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.golden_root import REPOSITORY

# Lowest first. A name stands for a room and everything in it. A new room needs a place here.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("seg2any.system",),
    ("seg2any.layout",),
    ("seg2any.attention", "seg2any.data"),
    ("seg2any.adapters",),
    ("seg2any.bases",),
    ("seg2any.diffusion",),
    ("seg2any.segment",),
    ("seg2any.generate",),
    ("seg2any.training",),
    ("seg2any.annotate",),
    ("seg2any.evaluation",),
    ("seg2any.commands",),
    ("seg2any", "seg2any.__main__"),
    ("eval", "benchmarks", "examples", "integrations"),
)
PACKAGES = ("seg2any", "eval", "benchmarks", "examples", "integrations")
OTHER_FOLDERS = ("tests",)  # hold Python files but have no place in the order
ONLY_IN = {"accelerate": ("seg2any.training", "seg2any.evaluation.generate_image")}


def modules_of(root: Path) -> dict[str, Path]:
    """Map dotted names to files: the modules of the packages, and the scripts beside them."""
    files = [*root.glob("*.py"), *(path for package in PACKAGES for path in (root / package).rglob("*.py"))]
    return {_dotted(path.relative_to(root)): path for path in sorted(files)}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """List dotted name and line of every import of a module.

    The name is the submodule where one is imported, else the module.
    """
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
    """Return the level of the longest matching prefix of `name`, or None."""
    inside = [
        (len(entry), index)
        for index, level in enumerate(LEVELS)
        for entry in level
        # The package `seg2any` itself has a place, which its modules do not inherit.
        if name == entry or (entry != "seg2any" and name.startswith(f"{entry}."))
    ]
    return max(inside)[1] if inside else None


def violations(root: Path) -> list[str]:
    """List imports that point up or leave their package, circles, and modules without a place."""
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
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(modules)]


def _points_up(name: str, imported: str) -> bool:
    level = level_of(imported)
    return level is None or level > level_of(name)


def circles(modules: Mapping[str, Path]) -> list[list[str]]:
    """List groups of modules that import each other, directly or through others.

    They are Tarjan's strongly connected components.
    """
    graph = {
        name: sorted({imported for imported, _ in imports_of(name, path, modules)} & modules.keys() - {name})
        for name, path in modules.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append([*component, name])

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_imports_point_one_way_and_in_no_circle():
    assert len(modules_of(REPOSITORY)) > 20
    assert violations(REPOSITORY) == []


def test_the_renderer_needs_layouts_only():
    """Check the imports of `shapes`.

    It makes the truth for every measurement, so it may not depend on measured code.
    """
    modules = modules_of(REPOSITORY)
    for name in ("seg2any.data.shapes", "seg2any.data.shapes_draw", "seg2any.data.dataset"):
        ours = {imported for imported, _ in imports_of(name, modules[name], modules) if imported.startswith("seg2any")}
        above = {imported for imported in ours if level_of(imported) > level_of("seg2any.layout")}
        assert all(imported.startswith("seg2any.data.") for imported in above), (name, above)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("seg2any/layout/npz.py", "from seg2any.attention.rules import may_attend", "imports seg2any.attention.rules"),
        ("seg2any/layout/npz.py", "def read():\n    from ..attention import rules", "seg2any/layout/npz.py:2 imports"),
        ("seg2any/attention/attend.py", "from ..adapters.files import COND", "imports seg2any.adapters.files"),
        ("seg2any/attention/tokens.py", "from seg2any import Seg2AnyPipeline", "tokens.py:1 imports seg2any,"),
        ("seg2any/generate/pipeline.py", "import seg2any.training.config", "imports seg2any.training.config"),
        ("seg2any/generate/pipeline.py", "import eval", "seg2any/generate/pipeline.py:1 imports eval"),
        (
            "seg2any/data/folder.py",
            "from seg2any.generate.pipeline import Seg2AnyPipeline",
            "imports seg2any.generate",
        ),
        (
            "seg2any/data/folder.py",
            "def f():\n    from seg2any.bases import base",
            "folder.py:2 imports seg2any.bases",
        ),
        ("seg2any/diffusion/prepare.py", "from accelerate.utils import gather", "only seg2any.training and"),
        ("seg2any/evaluation/compare.py", "import accelerate", "only seg2any.training and"),
        ("infer.py", "import accelerate", "only seg2any.training and"),
        ("seg2any/evaluation/compare.py", "import infer", "imports infer, a script"),
        ("seg2any/system/files.py", "from tests.golden_root import SUBSET", "for tests only"),
        ("seg2any/utils.py", "", "seg2any.utils has no place"),
        ("helpers/text.py", "", "helpers/ holds Python files"),
        ("seg2any/layout/layout.py", "from seg2any.layout import contour", "circle: seg2any.layout.contour -> "),
        ("seg2any/layout/layout.py", "def f():\n    from . import contour", "circle: seg2any.layout.contour -> "),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, expected: str):
    tree = {
        "infer.py": "",
        "eval/__init__.py": "",
        "seg2any/__init__.py": "",
        "seg2any/layout/contour.py": "from seg2any.layout.layout import Layout",
        "seg2any/layout/layout.py": "",
        file: source,
    }
    for path, content in tree.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    found = violations(tmp_path)
    assert len(found) == 1 and expected in found[0], found


def test_right_imports_pass(tmp_path: Path):
    for path, source in {
        "train.py": "from seg2any.training.trainer import fit",
        "seg2any/__init__.py": "from seg2any.layout.layout import Layout",
        "seg2any/layout/layout.py": "import numpy\nfrom ..system.errors import UserError",
        "seg2any/system/errors.py": "",
        "seg2any/training/trainer.py": "import accelerate\nfrom seg2any.data import shapes",
        "seg2any/data/shapes.py": "from seg2any.data import shapes_draw",
        "seg2any/data/shapes_draw.py": "",
        "eval/shapes.py": "from seg2any import Layout\nfrom seg2any.evaluation.judge import judge",
        "seg2any/evaluation/judge.py": "from seg2any.data.shapes import Scene",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert violations(tmp_path) == []
