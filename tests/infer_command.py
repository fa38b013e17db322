"""Run `infer.py` with the model that the repository ships, on small layouts."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from seg2any.layout import Layout
from tests.golden_root import REPOSITORY

MODEL = REPOSITORY / "examples" / "shapes" / "model"
SIDE = 64


def infer(*arguments: object, **flags: object) -> subprocess.CompletedProcess:
    """Run a command line in this process, which saves seconds of imports."""
    import infer

    words, out, err = command(*arguments, **flags), io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", words[1:]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = infer.main()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def infer_process(*arguments: object, **flags: object) -> subprocess.CompletedProcess:
    """Run a command line as users do."""
    return subprocess.run(command(*arguments, **flags), capture_output=True, text=True, timeout=240, env=environment())


def command(*arguments: object, **flags: object) -> list[str]:
    flags = {"pretrained_model_name_or_path": MODEL, "num_inference_steps": 1, "device": "cpu", **flags}
    named = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(REPOSITORY / "infer.py"), *named, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def layout(
    name: str, side: int = SIDE, seed: int | None = 3, captions: tuple[str, ...] = ("a red circle", "a star")
) -> Layout:
    masks = np.zeros((2, side, side), dtype=bool)
    masks[0, 4 : side // 2, 4 : side // 2], masks[1, side // 2 :, side // 4 :] = True, True
    return Layout(masks, captions, "a red circle and a star", seed=seed, name=name)


def three_layouts(parent: Path) -> Path:
    """Write two layouts of one size and one of another; return their folder."""
    for item in (layout("a"), layout("b", seed=None), layout("c", side=80)):
        item.write(parent / "masks" / f"{item.name}.json")
    return parent / "masks"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
