"""What a benchmark leaves: lines of JSON, printed last and kept where --output says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from seg2any.system.errors import UserError


def check_place(output: Path | None) -> None:
    """Raise UserError or OSError if `output` could not be written: now, not after minutes of measuring."""
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file for the JSON lines")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.parent):
        pass


def leave(lines: list[str], output: Path | None) -> None:
    """Print the lines and append them to `output`, if that is given."""
    print("\n".join(lines), flush=True)
    if output:
        with open(output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
