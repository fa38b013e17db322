"""Write the tables of the documentation that repeat the code: `python -m tests.pages`.

A page holds each between `<!-- generated: NAME -->` and `<!-- end -->`. `tests/test_pages.py` compares.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from seg2any.attention.settings import ConditionSettings
from seg2any.commands.evaluate import PROGRAMS
from seg2any.commands.verbs import VERBS
from seg2any.data.catalog import CATALOG
from seg2any.generate.memory_estimate import GIB, RESERVE, predict
from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.generate.options import Options
from seg2any.training.config import explained_defaults
from tests.golden_root import REPOSITORY
from tests.test_memory_estimate import ONE_IMAGE, flux_networks

DOCS = REPOSITORY / "docs"
MODES = {
    "full": "all weights stay on the GPU",
    "offload": "networks move to the GPU in turn; same images",
    "group_offload": "every layer moves in every step: slowest; same images",
    "int8": "rounded weights, networks in turn; other images",
    "nf4": "rounded weights, networks in turn; other images",
    "fp8": "rounded weights that are unpacked in every step, networks in turn; other images",
}
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)


def pages() -> list[Path]:
    """List the Markdown files that people read: those of the root and of docs/."""
    return sorted([*REPOSITORY.glob("*.md"), *DOCS.glob("*.md")])


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table; a bar inside a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(line)} |" for line in [list(header), *cells]]
    return "\n".join([lines[0], "|---" * len(list(header)) + "|", *lines[1:]])


def flags() -> str:
    """List the flags of generation that are no setting of the condition, in the order of --help."""
    fields = [field for field in dataclasses.fields(Options) if field.name != "settings"]
    return table(("flag", "values", "meaning"), map(_flag, fields))


def verbs() -> str:
    """List the verbs of the command line."""
    return table(("verb", "what it does"), ((f"`seg2any {name}`", verb.text) for name, verb in VERBS.items()))


def programs() -> str:
    """List the programs of `evaluate`."""
    return table(
        ("program", "what it does"), ((f"`seg2any evaluate {name}`", one.text) for name, one in PROGRAMS.items())
    )


def condition() -> str:
    """List the settings of the condition, which are flags and config keys alike."""
    return table(("setting", "values", "meaning"), map(_flag, dataclasses.fields(ConditionSettings)))


def _flag(field: dataclasses.Field) -> tuple[str, str, str]:
    """Return a row: the flag, its choices, and its help."""
    choices = ", ".join(f"`{choice}`" for choice in field.metadata.get("choices") or ())
    return f"`--{field.name}`", choices, field.metadata["help"]


def memory() -> str:
    """List what each memory mode takes at FLUX.1-dev's size: one image of 1024 px, 20 regions, in bf16."""
    networks = flux_networks()
    peaks = {mode: max(predict(networks, ONE_IMAGE, mode, 2).values()) + RESERVE for mode in MEMORY_MODES}
    rows = [(f"{peaks[mode] / GIB:.0f} GiB", f"`--memory {mode}`", MODES[mode]) for mode in MEMORY_MODES]
    return table(("GPU memory, estimated", "flag", "what it does"), rows)


def settings() -> str:
    """List every key of a training config with its default, a table for each section."""
    sections: dict[str, list[tuple[str, str, str]]] = {"": []}
    parents: list[str] = []
    for line in explained_defaults().splitlines():
        indent, key, value, meaning = re.fullmatch(r"( *)(\w+):(?: (.*?))?(?:  # (.*))?", line).groups()
        parents = [*parents[: len(indent) // 2], key]
        if value is None:
            continue
        section = parents[0] if len(parents) > 1 else ""
        sections.setdefault(section, []).append((f"`{'.'.join(parents)}`", f"`{value}`", meaning or ""))
    return "\n\n".join(table(("key", "default", "meaning"), rows) for rows in sections.values())


def parameters() -> str:
    """List the data sets by `type`, with their parameters and defaults."""
    rows = []
    for name, place in CATALOG.items():
        module, attribute = place.split(":")
        cls = getattr(importlib.import_module(module), attribute)
        given = [_parameter(each) for each in inspect.signature(cls).parameters.values()]
        rows.append((f"`{name}`", ", ".join(given), inspect.getdoc(cls).splitlines()[0]))
    return table(("`type`", "`params`", "samples"), rows)


def _parameter(parameter: inspect.Parameter) -> str:
    """Return `name`, or `name=default`."""
    is_needed = parameter.default is parameter.empty
    return f"`{parameter.name}`" if is_needed else f"`{parameter.name}={parameter.default}`"


def modules() -> str:
    """List every module of the package with the first line of its docstring, room by room."""
    folders = sorted({path.parent for path in (REPOSITORY / "seg2any").rglob("*.py")})
    return "\n\n".join(_room(folder) for folder in folders)


def _room(folder: Path) -> str:
    """Return a heading, the sentence of the room and the table of its modules."""
    files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    rows = [(f"`{path.name}`", _first_line(path)) for path in files]
    parts = [f"### {folder.relative_to(REPOSITORY).as_posix()}/", _first_line(folder / "__init__.py")]
    return "\n\n".join([*parts, table(("module", ""), rows)] if rows else parts)


def _first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


BLOCKS: Mapping[str, Callable[[], str]] = {
    "flags": flags,
    "verbs": verbs,
    "programs": programs,
    "condition": condition,
    "memory": memory,
    "settings": settings,
    "parameters": parameters,
    "modules": modules,
}


def renewed(text: str) -> str:
    """Return a page with its generated blocks made again."""
    return MARKED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def stale() -> Iterator[tuple[Path, str]]:
    """Yield each page whose generated blocks are out of date, with what it should hold."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            yield path, new


def main() -> None:
    """Write the blocks of all pages that are out of date."""
    for path, text in stale():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
