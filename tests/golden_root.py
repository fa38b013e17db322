"""Find the recorded behaviour of the published implementation, and FLUX.1's T5 tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUBSET = REPOSITORY / "tests" / "golden"
SEG_SUBSET = REPOSITORY / "tests" / "golden_seg"
XSAM_SUBSET = REPOSITORY / "tests" / "golden_xsam"


def golden_root() -> Path:
    """Return the folder of recorded behaviour of the published implementation.

    SEG2ANY_GOLDEN names it, else it is `../shared/golden` beside the repository, else the committed subset.

    Raises FileNotFoundError if SEG2ANY_GOLDEN names no folder.
    """
    return _named_or_shared("SEG2ANY_GOLDEN", "golden") or SUBSET


def seg_golden_root() -> Path:
    """Return the folder of recorded behaviour of published methods that find masks in images.

    SEG2ANY_GOLDEN_SEG names it, else it is `../shared/golden_seg` beside the repository, else the committed subset.

    Raises FileNotFoundError if SEG2ANY_GOLDEN_SEG names no folder.
    """
    return _named_or_shared("SEG2ANY_GOLDEN_SEG", "golden_seg") or SEG_SUBSET


def xsam_golden_root() -> Path:
    """Return the folder of recorded behaviour of the published X-SAM.

    SEG2ANY_GOLDEN_XSAM names it, else it is `../shared/golden_xsam` beside the repository, else the committed subset.

    Raises FileNotFoundError if SEG2ANY_GOLDEN_XSAM names no folder.
    """
    return _named_or_shared("SEG2ANY_GOLDEN_XSAM", "golden_xsam") or XSAM_SUBSET


def t5_tokenizer_folder() -> Path | None:
    """Return the folder of FLUX.1's T5 tokenizer, or None.

    SEG2ANY_T5_TOKENIZER names it, else it is `../shared/t5_tokenizer` beside the repository.

    Raises FileNotFoundError if SEG2ANY_T5_TOKENIZER names no folder.
    """
    return _named_or_shared("SEG2ANY_T5_TOKENIZER", "t5_tokenizer")


def _named_or_shared(variable: str, name: str) -> Path | None:
    if named := os.environ.get(variable):
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"{variable}={named}: not a folder; name another one or unset {variable}")
        return folder
    shared = REPOSITORY.parent / "shared" / name
    return shared if shared.is_dir() else None
