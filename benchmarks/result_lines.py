"""What a benchmark leaves: lines of JSON, printed last and kept where --output says."""

from __future__ import annotations

from pathlib import Path


def leave(lines: list[str], output: Path | None) -> None:
    """Print the lines and append them to `output`, if that is given."""
    print("\n".join(lines), flush=True)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
