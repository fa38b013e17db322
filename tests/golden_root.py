"""Where the recorded behaviour of the published implementation lies."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUBSET = REPOSITORY / "tests" / "golden"


def golden_root() -> Path:
    """The folder named by SEG2ANY_GOLDEN, else `../shared/golden` beside the repository, else the committed subset."""
    named = os.environ.get("SEG2ANY_GOLDEN")
    if named:
        root = Path(named).expanduser().resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"SEG2ANY_GOLDEN={named}: no folder {root}; name a golden root or unset it")
        return root
    shared = REPOSITORY.parent / "shared" / "golden"
    return shared if shared.is_dir() else SUBSET
