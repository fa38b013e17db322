"""Check that defects recorded on the published evaluation scripts are absent from ours."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.golden_root import REPOSITORY


def launcher_has_its_own_flags(recorded: dict) -> None:
    """Check that launcher flags precede the script's name.

    In the published script they followed it and were passed to the script.
    """
    assert recorded["num_processes"] is None
    assert any(word.startswith("--num_processes") for word in recorded["script_args"])
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "python"
        # The script asks Python for a free port by -c; everything else is only printed.
        python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 29500 && exit 0\nprintf "%s\\n" "$@"\nexit 3\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        own = {"PYTHON": str(python), "PROCESSES": "4", "LORA": folder, "OUT": folder}
        command = ["bash", str(REPOSITORY / "eval.sh"), "ade20k", "--seed", "7"]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=60)
    words = done.stdout.split()
    script = words.index("seg2any.evaluation.generate_image")
    assert words[words.index("--nproc_per_node") + 1] == "4" and words.index("--nproc_per_node") < script
    assert words.index("--seed") > script and done.returncode == 3


def no_function_is_called_with_too_few_arguments(recorded: list[str]) -> None:
    """Bind every call within a file of the evaluation to its signature.

    The published worker is called without the queue it takes.
    """
    definition, call = recorded
    assert "queue" in definition and "queue" not in call
    checked = sum(
        1 for path in sorted((REPOSITORY / "seg2any" / "evaluation").rglob("*.py")) for _ in _bound_calls(path)
    )
    assert checked > 300


def _bound_calls(path: Path) -> Iterator[ast.Call]:
    """List calls of the file's own functions and classes, after binding their arguments."""
    module = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    for call in ast.walk(ast.parse(path.read_text())):
        called = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and vars(module).get(call.func.id)
        if getattr(called, "__module__", None) != module.__name__ or _is_spread(call):
            continue
        try:
            inspect.signature(called).bind(*call.args, **{word.arg: word.value for word in call.keywords})
        except TypeError as error:
            raise AssertionError(f"{path}:{call.lineno}: {error}") from None
        yield call


def _is_spread(call: ast.Call) -> bool:
    """Return whether * or ** hides the number of arguments."""
    return any(isinstance(word, ast.Starred) for word in call.args) or any(not word.arg for word in call.keywords)
