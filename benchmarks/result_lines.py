"""Print the JSON lines of a benchmark, and append them to the file of --output."""

from __future__ import annotations

import tempfile
from pathlib import Path

from seg2any.system.errors import UserError
from seg2any.system.files import append_lines


def check_place(output: Path | None) -> None:
    """Raise UserError or OSError if `output` cannot be written; call it before measuring."""
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output}: a folder has this name; give a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.parent):
        pass


def leave(lines: list[str], output: Path | None) -> None:
    """Print the lines and append them to `output`, if it is given."""
    print("\n".join(lines), flush=True)
    if output:
        append_lines(output, "\n".join(lines))
